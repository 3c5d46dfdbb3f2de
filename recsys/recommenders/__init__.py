"""What recommends: the contract of every recommender, the one composed of parts, and the baselines of every table."""
