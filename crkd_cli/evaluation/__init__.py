"""Scores of a checkpoint on the cases of a split, and the files that hold them."""
