"""Base codes: BPG through x265 and FFmpeg, none, and ladders of several."""
