"""Predictions of a run, and how good they are."""
