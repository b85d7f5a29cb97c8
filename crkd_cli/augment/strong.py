"""The strong augmentation, for few labels."""

from dataclasses import dataclass

from crkd_cli.augment.published import Published


@dataclass(frozen=True)
class Strong(Published):
    """The augmentation of nnU-Net, with the published strong view."""
