"""The right to be forgotten: users or items taken out of a trained recommender. Experimental: may change."""
