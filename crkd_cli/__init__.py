"""Semi-supervised segmentation of medical images, in 2D and 3D, from raw scans to masks."""

__version__ = "0.1.0"
