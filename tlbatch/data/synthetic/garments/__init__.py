"""Synthetic photographs of garments with phrases of tags."""
