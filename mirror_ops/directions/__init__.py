"""What to change: directions in the text encoder's space."""
