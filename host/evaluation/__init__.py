"""Measuring pictures with the user's own networks: their files, folders of pictures, and what comes out as Scores."""
