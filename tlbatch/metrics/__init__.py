"""Scores and their intervals, from arrays alone."""
