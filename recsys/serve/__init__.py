"""Bundles: one folder that serves."""
