"""The job: its sections, and how job files are loaded."""
