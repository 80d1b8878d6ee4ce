"""Checkpoints of every kind as encoders with their provenance; export to a hub's layout."""
