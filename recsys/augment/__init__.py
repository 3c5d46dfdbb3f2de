"""Augmentations and auxiliary losses on views of a batch, one file per idea."""
