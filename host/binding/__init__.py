"""The engine on a MODEL: where ComfyUI calls us, and what we show the patches."""
