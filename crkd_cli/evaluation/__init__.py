"""Evaluation: scores of a checkpoint on the cases of a split, and their files."""
