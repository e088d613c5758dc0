"""Base codes: BPG through x265 and FFmpeg, no base code, and bitrate ladders of several."""
