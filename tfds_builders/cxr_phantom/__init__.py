"""cxr_phantom: chest-like phantoms with known truth."""
