"""Published scores to print beside ours, from configs/about/published.yaml."""

from typing import Literal

import yaml

from crkd_cli.config import Strict, parse
from crkd_cli.paths import packaged_folder


class PublishedRow(Strict, frozen=True):
    """One published result on the test cases of a data set with `labeled` labeled cases."""

    dataset: str
    labeled: int
    method: str
    protocol: Literal["paper", "authors"]  # authors: each in their own way
    source: str
    dice: float  # percent
    jaccard: float | None = None  # percent
    hd95: float | None = None  # voxels
    asd: float | None = None  # voxels

    def scores(self) -> dict[str, float]:
        """By metric, in our units: overlaps from 0 to 1."""
        jaccard = None if self.jaccard is None else self.jaccard / 100
        found = {
            "dice": self.dice / 100,
            "jaccard": jaccard,
            "hd95_px": self.hd95,
            "asd_px": self.asd,
        }
        return {metric: round(score, 6) for metric, score in found.items() if score is not None}


def published_rows(dataset: str, labeled: int) -> list[PublishedRow]:
    """Published rows for `dataset` with `labeled` labeled training cases; none for other settings."""
    return [
        row for row in all_published_rows() if row.dataset == dataset and row.labeled == labeled
    ]


def all_published_rows() -> list[PublishedRow]:
    """All published rows, in the order of the file."""
    file = packaged_folder("configs") / "about" / "published.yaml"
    found: list[PublishedRow] = parse(
        yaml.safe_load(file.read_text(encoding="utf-8")), list[PublishedRow], str(file)
    )
    return found
