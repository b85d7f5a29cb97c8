"""Scores of label maps, with numpy and scipy only."""
