"""Exact full ranking, metrics, segments, comparison, reports."""
