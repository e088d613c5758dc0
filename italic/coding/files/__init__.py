"""Compressed files, picture files, and the payloads of classical codecs in them."""
