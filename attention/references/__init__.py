"""What the user brings: style pictures, and pictures inverted to noise."""
