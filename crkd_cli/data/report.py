"""What the preparation of a dataset reports: findings, the inventory, the description."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import msgspec

from crkd_cli.data.cases import RawCase
from crkd_cli.data.changes import NewContent
from crkd_cli.data.description import Channel, Description, stated
from crkd_cli.data.inventory import Inventory
from crkd_cli.data.planning import PlanWithReasons
from crkd_cli.data.store import ClassInfo, DatasetSpec
from crkd_cli.errors import CrkdError, pluralize
from crkd_cli.text import format_size


@dataclass(frozen=True)
class Finding:
    """What the user should know about the raw files. If there is an error, nothing is written."""

    level: Literal["error", "notice"]
    where: str  # case id, file, or the name of the dataset
    what: str


@dataclass(frozen=True)
class PreparationReport:
    """All findings about a dataset, and a summary in one line unless there are errors."""

    findings: tuple[Finding, ...]
    inventory: Inventory
    description: Description
    cases: tuple[RawCase, ...] = ()
    summary: str = ""
    spacing: str = ""  # a line about the spacing of the files
    channels: tuple[str, ...] = ()  # a line per channel: modality, values, normalization
    classes: tuple[str, ...] = ()  # a line per class: values, labels, share of pixels, size
    plan: PlanWithReasons | None = None  # None: a public dataset, or there are errors
    # Since the dataset was prepared before, if it was.
    new_content: NewContent = field(default_factory=NewContent)
    failure: CrkdError | None = None  # why the dataset as a whole cannot be prepared

    @property
    def errors(self) -> list[Finding]:
        """The findings that prevent the store from being written."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def failed(self) -> bool:
        """Whether nothing was written because of an error."""
        return self.failure is not None or bool(self.errors)

    def tree(self) -> dict[str, Any]:
        """Return the report for JSON."""
        files = {entry.path: entry.file for entry in self.inventory.entries}
        errors = [{"where": error.where, "what": error.what} for error in self.errors]
        if self.failure is not None:
            errors.append({"where": "", "what": str(self.failure)})
        return {
            "description": stated(self.description),
            "plan": {} if self.plan is None else self.plan.reasons,
            "cases": [_case_tree(case, files) for case in self.cases],
            "files": self.inventory.tree(),
            "new": {name: list(cases) for name, cases in self.new_content._asdict().items()},
            "notices": [notice.what for notice in self.findings if notice.level == "notice"],
            "errors": errors,
        }


def complete_description(spec: DatasetSpec, classes: Sequence[ClassInfo]) -> Description:
    """Return the description in `spec` with the channels and classes that were inferred."""
    given = spec.description
    channels = tuple(Channel(name=info.name, modality=info.modality) for info in spec.channels)
    completed = msgspec.structs.replace(given, channels=channels, plan=spec.plan)
    if given.colors:
        return completed
    values: dict[str, int | tuple[int, ...]] = {
        info.name: info.values if len(info.values) > 1 else info.value
        for info in classes
        if info.values != (0,)
    }
    return msgspec.structs.replace(completed, classes=values or given.classes, ignore=spec.ignore)


def describe_spacings(spacings: Sequence[Sequence[float] | None], axes: str) -> str:
    """Describe the spacing of image files, in mm along `axes` or None: the range and the median.

    Returns "" for 2D images without any, such as photographs.
    """
    known = [spacing for spacing in spacings if spacing is not None]
    if not known:
        return "spacing: not stated" if len(axes) == 3 else ""
    by_axis = list(zip(*known, strict=True))
    lowest, highest = format_size(map(min, by_axis)), format_size(map(max, by_axis))
    line = f"spacing ({' × '.join(axes)}): {lowest} mm"
    if lowest != highest:
        line += f" to {highest} mm, median {format_size(map(median, by_axis))} mm"
    if unknown := len(spacings) - len(known):
        line += f"; {unknown} of {pluralize(len(spacings), 'file')} do not state it"
    return line


def _case_tree(case: RawCase, files: Mapping[Path, str]) -> dict[str, Any]:
    return {
        "id": case.id,
        "patient": case.group,
        # None: it does not exist.
        "images": [
            {"file": files.get(image.path), "channel": image.channel} for image in case.images
        ],
        "labels": [
            {"file": files.get(label.path), "class": label.class_name} for label in case.labels
        ],
    }
