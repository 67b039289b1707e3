"""Formulas: tensors in, tensors out. Nothing here knows of models, sites or ComfyUI."""
