"""Scores and their confidence intervals, computed from arrays."""
