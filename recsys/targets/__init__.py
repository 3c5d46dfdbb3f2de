"""Targets: which item is predicted at which position, one file per idea."""
