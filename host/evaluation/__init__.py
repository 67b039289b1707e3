"""Nodes that measure, pick and show pictures."""
