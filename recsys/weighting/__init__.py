"""How much each target counts."""
