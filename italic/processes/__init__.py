"""Parallel work in several processes: local ones, or workers of a Ray cluster."""
