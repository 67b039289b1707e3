"""The methods on the small models that ship with the pack: templates on a real ComfyUI, pictures and figures."""
