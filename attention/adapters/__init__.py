"""Modules with weights, and the files they come in."""
