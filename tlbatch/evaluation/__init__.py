"""Inference, predictions and their evaluation."""
