"""BRAX for TFDS; see README.md."""
