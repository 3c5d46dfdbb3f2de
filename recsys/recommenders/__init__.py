"""Recommenders: the contract of all of them, the one composed of parts, and the baselines."""
