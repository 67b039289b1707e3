"""Pictures on a model as ComfyUI_IPAdapter_plus puts them there: encoded, combined, and applied by weight types."""
