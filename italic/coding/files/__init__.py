"""Compressed files, picture files, and bounded decoding of classical codecs."""
