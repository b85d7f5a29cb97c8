"""Augmentation of whole batches on the device.

Parameters are drawn on the host from a given generator, once for an image and its label.
"""
