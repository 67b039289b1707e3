"""Pictures scored, shown with their scores, and picked."""
