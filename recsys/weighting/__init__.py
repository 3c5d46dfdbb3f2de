"""Weights of targets: inverse propensities."""
