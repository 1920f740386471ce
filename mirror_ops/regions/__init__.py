"""Where an edit acts."""
