"""Raw ids and the rows that stand for them: vocabularies, catalogues, vectors by id."""
