"""Hand-made features in place of a network."""
