"""What any subject method needs: words, masks, recordings."""
