"""Recommenders that generate: the codes of the next item are decoded step by step, and searched for among all items."""
