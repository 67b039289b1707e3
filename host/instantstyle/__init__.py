"""What a style reference needs of ComfyUI: adapters, image encoders, files."""
