"""Item tables: ids, texts, frozen vectors and their sums as item embeddings, one file per kind."""
