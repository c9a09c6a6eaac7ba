"""Retrains image classifiers on SLURM clusters and reports honestly how good they are."""

from importlib.metadata import version

__version__ = version("tlbatch")
