"""Losses over sequences, one idea a file; each is a mean by the weights of the sequences."""
