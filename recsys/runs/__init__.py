"""The run folder: written, read, resumed."""
