"""Prediction: from an image to a label map, its mask file and its overlay.

Knows no scores.
"""
