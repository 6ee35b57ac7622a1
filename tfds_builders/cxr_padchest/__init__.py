"""PadChest for TFDS; see README.md."""
