"""WebDataset shards: writing, reading, storing and staging them."""
