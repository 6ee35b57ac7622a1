"""MIMIC-CXR-JPG with MIMIC-IV for TFDS; see README.md."""
