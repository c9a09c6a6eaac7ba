"""Moved to `tlbatch.deploy.model`; this name works for one version."""

from tlbatch.deploy.model import ExportedModel

__all__ = ["ExportedModel"]
