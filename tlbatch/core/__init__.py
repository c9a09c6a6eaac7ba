"""Errors, files and shell quoting that everything else uses."""
