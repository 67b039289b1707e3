"""The main job in one command: the real ComfyUI, the InstantStyle template, a contact sheet."""
