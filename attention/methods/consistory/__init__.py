"""ConsiStory (arXiv:2402.03286)."""
