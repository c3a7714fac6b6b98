"""Verifiable tasks: problems drawn from seeds, worked thoughts, exact scores, and text generated from them."""
