"""Studies around an evaluation: permutation test, learning curve, several targets."""
