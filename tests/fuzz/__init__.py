"""Readers of files that others wrote, fed with files that nobody wrote; `corpus/` keeps the worst."""
