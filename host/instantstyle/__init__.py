"""Style references in ComfyUI: adapters, image encoders, files."""
