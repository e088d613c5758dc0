"""Model files: their settings, saving and loading, and the installed models."""
