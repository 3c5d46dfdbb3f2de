"""Ranking: which items may be recommended, how scores are computed, the order of equal scores."""
