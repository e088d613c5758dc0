"""The coding: base code, entropy coder, codec and file format."""
