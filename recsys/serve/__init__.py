"""Bundles: one folder that holds everything for serving."""
