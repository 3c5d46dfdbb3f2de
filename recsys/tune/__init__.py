"""Choosing the knobs of a recipe on validation."""
