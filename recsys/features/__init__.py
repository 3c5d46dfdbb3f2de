"""Typed columns of items, users and events: texts, categories, numbers and lists, read from tables and kept by row."""
