"""Heads: what is trained on features to give scores."""
