"""The only package that knows ComfyUI. Written against 0.30; tests/host/test_probe.py names what a newer one moved."""
