"""Submitting runs to SLURM, running them here, and following them."""
