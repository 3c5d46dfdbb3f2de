"""Ranking metrics per user, one file each, exact under ties."""
