"""Synthetic images: fundus photographs that a grader has graded, and garments with phrases."""
