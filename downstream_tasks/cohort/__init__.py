"""Labelled examples, their splits, their clips, and the problem posed."""
