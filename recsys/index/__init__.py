"""Nearest items: exact search or a graph, raw ids in and out. The only package that imports faiss."""
