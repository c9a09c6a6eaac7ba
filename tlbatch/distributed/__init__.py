"""The process group of a stage, and the watchdog over its ranks."""
