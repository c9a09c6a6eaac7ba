"""Moved to `tlbatch.deploy.model`; this name stays for one version."""

from tlbatch.deploy.model import ExportedModel

__all__ = ["ExportedModel"]
