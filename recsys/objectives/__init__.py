"""Training objectives, one file per loss."""
