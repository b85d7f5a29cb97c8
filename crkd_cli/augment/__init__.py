"""Augmentation of whole batches on the device. Parameters are drawn on the host from a given generator, once for image and label.

Letters: B batch, C channels, *S two or three spatial axes.
"""
