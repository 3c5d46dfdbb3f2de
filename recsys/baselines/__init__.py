"""Baselines that every table needs: popularity, item-kNN, EASE, Markov."""
