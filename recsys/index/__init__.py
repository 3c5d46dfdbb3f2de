"""Nearest items: exact search or an HNSW graph, raw ids in and out. The only package that imports faiss."""
