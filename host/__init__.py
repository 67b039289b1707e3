"""All of ComfyUI but the schemas: the only storey that knows it.

Written against 0.30. After an update of ComfyUI, tests/contract/test_probe.py names what moved and the file to mend.
"""
