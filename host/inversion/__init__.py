"""Pictures inverted on ComfyUI's sampler, kept, and sampled back."""
