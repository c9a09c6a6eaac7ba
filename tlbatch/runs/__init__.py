"""Run folders: records, paths, stages and progress."""
