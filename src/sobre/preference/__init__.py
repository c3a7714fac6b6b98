"""Learning from pairs of answers, one preferred to the other."""
