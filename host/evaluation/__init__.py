"""Pictures measured: with the user's own networks or one CLIP, in batches and folders; shown with their scores, and picked."""
