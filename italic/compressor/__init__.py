"""Pictures to files and back, BPG files to better pictures."""
