"""What is predicted where, one file per idea."""
