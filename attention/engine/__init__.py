"""What a method sees of a model call, and the contract it keeps."""
