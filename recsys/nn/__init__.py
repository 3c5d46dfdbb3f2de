"""Layers that two or more encoders share."""
