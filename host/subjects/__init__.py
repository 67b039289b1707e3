"""Stories and subjects in ComfyUI: tokens, recording, files."""
