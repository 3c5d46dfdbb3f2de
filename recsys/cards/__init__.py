"""Public data sets by name: what each is, where its files are, how they are read."""
