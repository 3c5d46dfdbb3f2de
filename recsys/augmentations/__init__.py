"""Changed copies of a batch, one file per idea."""
