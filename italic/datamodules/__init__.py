"""The data: images, their base codes, step masks."""
