"""Training objectives of score models, one family a file."""
