"""Image data: sources, splits, shards, sampling, loading."""
