"""Moved to `tlbatch.data.synthetic`; this name is kept for one version."""
