"""NIH ChestX-ray14 for TFDS; see README.md."""
