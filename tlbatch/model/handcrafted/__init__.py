"""Handcrafted features in place of a network."""
