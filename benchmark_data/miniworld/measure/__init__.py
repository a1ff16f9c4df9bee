"""How good the miniature world's models are, against the known truth of what is drawn."""
