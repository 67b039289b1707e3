"""The methods on the small models that ship with the pack: the templates run on a real ComfyUI, pictures and figures."""
