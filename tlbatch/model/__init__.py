"""Backbones, cuts, heads and their training state."""
