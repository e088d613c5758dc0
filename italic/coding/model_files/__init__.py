"""Model files: what they say, how they are loaded, which are installed."""
