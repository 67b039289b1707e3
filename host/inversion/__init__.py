"""Pictures inverted on ComfyUI's sampler, saved, and sampled back."""
