"""What users say they want, in plain language: written, matched with what they chose next, and measured on five axes."""
