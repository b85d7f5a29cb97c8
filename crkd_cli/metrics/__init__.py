"""Scores of label maps: numpy and scipy only."""
