"""Texts, and what language models make of them: vectors and profiles."""
