"""A folder of pictures and a table of one's own for TFDS; see README.md."""
