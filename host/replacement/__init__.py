"""Nodes of IPAdapter_plus that run as ours where that pack is not installed: a table, and who reads it."""
