"""Where images and labels come from: one module a kind of source."""
