"""Coding of images to streams and back: the codec, the entropy coder and the range coder."""
