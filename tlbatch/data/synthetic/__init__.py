"""Synthetic images: graded fundus photographs, and garments with phrases."""
