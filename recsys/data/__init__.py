"""From tables to a split: cleaning, vocabulary, splitters, audit, prepared arrays, batches."""
