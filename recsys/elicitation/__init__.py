"""Which items to ask a new user about, and what the answers are worth."""
