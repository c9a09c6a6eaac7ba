"""The folder of a run: records, paths, stages and progress."""
