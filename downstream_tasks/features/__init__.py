"""Features of frozen encoders, baselines and controls."""
