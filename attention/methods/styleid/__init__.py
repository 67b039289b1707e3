"""StyleID (arXiv:2312.09008)."""
