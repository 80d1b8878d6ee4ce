"""Ask for the signal: what features say of values that were hidden (method 10, 11.5)."""
