"""Read nnU-Net's `dataset.json`, in its current and its earlier format."""

from pathlib import Path
from typing import Any

from crkd_cli.errors import UsageError

MODALITIES = {
    "ct": "CT",
    "mr": "MR",
    "mri": "MR",
    "pet": "gray",
    "rgb": "RGB",
    "gray": "gray",
    "grey": "gray",
    "grayscale": "gray",
}
COLORS = (["r", "g", "b"], ["red", "green", "blue"])


def description_tree(tree: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the keys of a description that `tree`, the content of `file`, states.

    Other keys are ignored. Raises UsageError if `tree` was not written for nnU-Net.
    """
    labels = tree.get("labels")
    channels = tree.get("channel_names", tree.get("modality"))
    if not isinstance(labels, dict) or not isinstance(channels, dict):
        raise UsageError(
            f"{file} is not in nnU-Net's format: it lacks the sections channel_names and labels; "
            "rename it, or describe the dataset in dataset.yaml"
        )
    classes = _classes(labels, file)
    description: dict[str, Any] = {"channels": _channels(channels)}
    ignore = classes.pop("ignore", None)
    if ignore is not None:
        description["ignore"] = ignore
    if classes:
        description["classes"] = classes
    return description


def _channels(channels: dict[str, Any]) -> list[dict[str, Any]]:
    numbers = sorted(channels, key=lambda number: (len(number), number))
    names = [str(channels[number]) for number in numbers]
    if [name.lower() for name in names] in COLORS:
        return [{"name": "image", "modality": "RGB"}]
    modalities = [MODALITIES.get(name.lower()) for name in names]
    if len(set(names)) < len(names):  # the names of modalities, such as MRI
        names = [f"{name} {number}" for number, name in zip(numbers, names, strict=True)]
    pairs = zip(names, modalities, strict=True)
    return [{"name": name, "modality": modality} for name, modality in pairs]


def _classes(labels: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the classes by name. The earlier format has names by value."""
    if not all(name.isdecimal() for name in labels):
        return dict(labels)
    classes: dict[str, Any] = {}
    for value, name in labels.items():
        if str(name) in classes:
            raise UsageError(f"{file}: two labels are called {name!r}; rename one")
        classes[str(name)] = int(value)
    return classes
