"""Scores of a trained method, and the protocols that compare methods."""
