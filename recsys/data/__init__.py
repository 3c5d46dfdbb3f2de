"""Raw files to batches: readers, cards, cleaning, splits, the audit, the prepared cache, batches, negatives."""
