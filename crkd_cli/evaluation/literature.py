"""Published scores to print beside our own, from configs/about/published.yaml."""

from typing import Literal

import yaml

from crkd_cli.config import Strict, parse
from crkd_cli.paths import packaged_folder


class PublishedRow(Strict, frozen=True):
    """A published result on the test cases of a dataset with `labeled` labeled cases."""

    dataset: str
    labeled: int
    method: str
    protocol: Literal["paper", "authors"]  # authors: as each source reports it
    source: str
    dice: float  # percent
    jaccard: float | None = None  # percent
    hd95: float | None = None  # voxels
    asd: float | None = None  # voxels

    def scores(self) -> dict[str, float]:
        """Return the scores by metric, with overlaps from 0 to 1."""
        jaccard = None if self.jaccard is None else self.jaccard / 100
        scores = {
            "dice": self.dice / 100,
            "jaccard": jaccard,
            "hd95_px": self.hd95,
            "asd_px": self.asd,
        }
        return {metric: round(score, 6) for metric, score in scores.items() if score is not None}


def published_rows(dataset: str, labeled: int) -> list[PublishedRow]:
    """Return the published rows for `dataset` with `labeled` labeled training cases."""
    return [
        row for row in all_published_rows() if row.dataset == dataset and row.labeled == labeled
    ]


def all_published_rows() -> list[PublishedRow]:
    """Return all published rows, in the order of the file."""
    file = packaged_folder("configs") / "about" / "published.yaml"
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    rows: list[PublishedRow] = parse(tree, list[PublishedRow], str(file))
    return rows
