"""StyleDrop (arXiv:2306.00983) on a MODEL: tuning an adapter, keeping it in files, and guiding with it."""
