"""Lossless coding: base codes, exact inference, codec, entropy coder, models and file format."""
