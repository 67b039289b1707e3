"""What computes. Everything here imports only torch, but for `host`, which alone touches ComfyUI."""
