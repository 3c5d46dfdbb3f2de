"""Texts of items and users: text vectors, and profiles written by language models."""
