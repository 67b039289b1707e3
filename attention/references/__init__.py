"""Reference pictures: encoded as a style, or inverted to noise."""
