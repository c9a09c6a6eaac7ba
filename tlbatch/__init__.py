"""Retrain image classifiers on SLURM clusters, with reports that say honestly how good they are."""

__version__ = "0.1.0"
