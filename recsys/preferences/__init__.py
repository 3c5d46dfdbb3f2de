"""What users say they want, in plain language: written down, matched with what they chose next, and obeyed or not."""
