"""Predictions in, scores and tables out."""
