"""Images to streams and back: the steps, the entropy coder, the range coder."""
