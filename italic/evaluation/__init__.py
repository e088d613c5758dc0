"""Evaluation of models: model and image sources, and the modes of evaluate.py."""
