"""Semantic ids: short tuples of codes that stand for items, made from their vectors; tokenizers, one file each."""
