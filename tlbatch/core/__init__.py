"""Errors, files and shell quoting, used by all other packages."""
