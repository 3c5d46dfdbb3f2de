"""Statistics of the training events, counted once: item similarity, co-occurrence, time gaps, same targets."""
