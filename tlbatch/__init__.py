"""Retrains image classifiers on SLURM clusters and reports honestly how good they are."""

__version__ = "0.1.0"
