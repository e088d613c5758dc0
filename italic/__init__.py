"""ITALIC: iterative and attentive lossless image compression."""
