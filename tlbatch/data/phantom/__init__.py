"""Moved to `tlbatch.data.synthetic`; this name stays for one version."""
