"""A run of train.py: its parts, its trainer, its result."""
