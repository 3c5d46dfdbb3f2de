"""What is done while a text or an item is generated, and with several texts of one prompt; no weight changes."""
