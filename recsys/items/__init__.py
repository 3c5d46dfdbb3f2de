"""Item tables: what an item looks like to encoders and objectives, one file per kind."""
