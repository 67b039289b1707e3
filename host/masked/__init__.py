"""A masked transformer with its tokens (aMUSEd, arXiv:2401.01808), as ComfyUI's MODEL, CLIP and VAE."""
