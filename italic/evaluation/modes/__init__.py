"""The modes of evaluate.py, one file for each mode."""
