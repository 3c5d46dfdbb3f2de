"""Items that a target is compared with instead of all items, one file per idea."""
