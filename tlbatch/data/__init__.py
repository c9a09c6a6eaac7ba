"""Images in: sources, splits, shards, order, loading."""
