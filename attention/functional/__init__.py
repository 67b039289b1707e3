"""Formulas: tensors in, tensors out. Nothing here refers to models, sites or ComfyUI."""
