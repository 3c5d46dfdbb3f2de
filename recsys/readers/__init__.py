"""Raw files and frames as lazy tables with named columns."""
