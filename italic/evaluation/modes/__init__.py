"""What evaluate.py can do: a file for each mode."""
