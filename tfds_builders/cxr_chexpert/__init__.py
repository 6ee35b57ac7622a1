"""CheXpert with its demographics for TFDS; see README.md."""
