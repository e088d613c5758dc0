"""Training and evaluation data: images, base codes and step masks."""
