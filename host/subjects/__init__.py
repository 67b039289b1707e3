"""Stories and subjects on ComfyUI: tokens, recording, files."""
