"""Backbones, cut points, heads, objectives and checkpoints."""
