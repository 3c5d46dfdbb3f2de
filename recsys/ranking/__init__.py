"""The rules of every list: which items may be shown, how scores are computed, what comes first among equal ones."""
