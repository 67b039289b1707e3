"""The version of the pack, as in pyproject.toml."""

VERSION = "0.1.0"
