"""How the predicted mask of a class is post-processed."""

from crkd_cli.config import Fraction, Strict


class ClassRule(Strict, frozen=True):
    """How the predicted mask of a class is post-processed."""

    # Components with fewer voxels than this share of the largest one are removed; 1 keeps one.
    smallest_component: Fraction = 0.0
    fill_holes: bool = False  # background that the class encloses becomes the class

    def __str__(self) -> str:
        """Describe the rule in a few words."""
        parts = []
        if self.smallest_component == 1.0:
            parts.append("largest component only")
        elif self.smallest_component:
            percent = f"{self.smallest_component:.0%}".replace("%", " %")
            parts.append(f"components below {percent} of the largest removed")
        if self.fill_holes:
            parts.append("holes filled")
        return ", ".join(parts) or "none"
