"""What is counted on training events, once."""
