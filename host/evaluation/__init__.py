"""Pictures measured, with the user's own networks or one CLIP, then shown with their scores, and picked."""
