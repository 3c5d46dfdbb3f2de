"""Augmentations of histories: crop, mask, reorder, substitute, insert and their choice, one file each."""
