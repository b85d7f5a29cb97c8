"""Writes docs/results.md from benchmarks/results: the text of about.md, and the tables that the records there give.

python benchmarks/results_page.py

A line `<!-- results: acdc 3 96x96 2500 -->` of about.md becomes the tables of that data set, number of labeled cases, frame
and number of steps done; `<!-- results: others -->` becomes a section for every other group. Files speed-*, labels-*,
methods-* and smoke-* are other pages'; about.md quotes statistics-*.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from crkd_cli.evaluation.literature import published_rows
from crkd_cli.methods import METHODS
from crkd_cli.paths import atomic_write
from crkd_cli.training.plan import MAY_CHANGE

CHECKOUT = Path(__file__).parents[1]
RESULTS = CHECKOUT / "benchmarks" / "results"
PAGE = CHECKOUT / "docs" / "results.md"
PLACE = re.compile(r"^<!-- results: (.+) -->$", flags=re.MULTILINE)
USUAL = {*MAY_CHANGE, "train.seed", "method"} - {
    "train.steps"
}  # a run of a published setting may set these, and its method's own
# Told elsewhere on the page.
TOLD = {
    *USUAL,
    "train.steps",
    "train.precision",
    "data.frame.resize",
    "data.frame.patch",
    "data.frame.stride",
}
OTHERS = (
    "speed-",
    "labels-",
    "methods-",
    "smoke-",
    "statistics-",
)  # files that hold no run's scores
CHECKPOINTS = {"best.pth": "best on val", "last.pth": "last"}
Record = dict[str, Any]


class Group(NamedTuple):
    """Runs that may be compared."""

    dataset: str
    labeled: int
    frame: str  # 96x96
    steps: int

    @property
    def key(self) -> str:
        return " ".join(map(str, self))

    @property
    def heading(self) -> str:
        return f"{self.dataset}, {self.labeled} labeled, {self.frame.replace('x', ' × ')}, {self.steps:,} steps"


def main() -> None:
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page(RESULTS), encoding="utf-8")


def page(folder: Path) -> str:
    """The page for the records and the about.md of `folder`."""
    groups = read(folder)
    text = (folder / "about.md").read_text(encoding="utf-8")
    named = set(PLACE.findall(text))

    def fill(place: re.Match[str]) -> str:
        if place[1] != "others":
            found = [group for group in groups if group.key == place[1]]
            return (
                section(found[0], groups[found[0]])
                if found
                else "No run of this setting is recorded."
            )
        rest = [group for group in sorted(groups) if group.key not in named]
        return "\n\n".join(
            f"## {group.heading}\n\n{section(group, groups[group])}" for group in rest
        )

    return PLACE.sub(fill, text).rstrip() + "\n"


def read(folder: Path) -> dict[Group, list[Record]]:
    """The records by group, sorted by method, seed and checkpoint."""
    groups: dict[Group, list[Record]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        if file.name.startswith(OTHERS):
            continue
        record = {**json.loads(file.read_text(encoding="utf-8")), "file": file.name}
        if "config" not in record:
            sys.exit(
                f"error: {file} does not hold the run's configuration; make it again with benchmarks/record.py"
            )
        config = record["config"]
        frame = config["data"]["frame"]
        sides = "x".join(map(str, frame["resize"] or frame["patch"]))
        steps = record.get("steps", config["train"]["steps"])
        groups[Group(config["data"]["name"], record["summary"]["labeled"], sides, steps)].append(
            record
        )
    for records in groups.values():
        shared = common(records)
        for record in records:
            record["label"] = label(record, shared)
        records.sort(
            key=lambda record: (record["label"], record["seed"], checkpoint(record), record["file"])
        )
    return groups


def common(records: list[Record]) -> dict[str, Any]:
    """What all runs of a group set apart from the packaged configuration, but for method and seed, which the tables tell."""
    first = records[0]["overrides"]
    return {
        key: value
        for key, value in first.items()
        if key not in ("method", "train.seed")
        and not key.startswith("methods.")
        and all(
            key in record["overrides"] and record["overrides"][key] == value for record in records
        )
    }


def label(record: Record, shared: dict[str, Any]) -> str:
    """The method and what this run alone sets, its authors' settings apart: `crkd without pixel, entropy; warmup 0.1`.

    Settings of equal values stand together: `crkd; pixel, entropy 0.1`.
    """
    method = record["config"]["method"]
    authors = METHODS[method].author_settings.get(record["config"]["data"]["name"], {})
    own = {
        key.removeprefix(f"methods.{method}."): value
        for key, value in record["overrides"].items()
        if key.startswith(f"methods.{method}.")
        or not (key in TOLD or key in shared or key.startswith("methods."))
        if key not in authors or authors[key] != value
    }
    planned = record["config"]["train"]["steps"]
    if record.get("steps", planned) < planned:
        own["schedule of"] = f"{planned:,} steps"
    keys: dict[str, list[str]] = defaultdict(list)  # by what they are set to
    for key, value in own.items():
        keys[str(value or 0)].append(key)
    off = ", ".join(keys.pop("0", []))
    return "; ".join(
        [
            f"{method} without {off}" if off else method,
            *(f"{', '.join(them)} {one}" for one, them in keys.items()),
        ]
    )


def section(group: Group, records: list[Record]) -> str:
    """Everything about one group: settings, a table for every protocol and part, published rows, how it was run."""
    good = [record for record in records if "failure" not in record]
    parts = []
    if shared := common(records):
        parts.append(
            f"Set apart from `configs/{group.dataset}.yaml`: {', '.join(f'{k} {v}' for k, v in shared.items())}."
        )
    scored = sorted({(record["summary"]["protocol"], record["summary"]["part"]) for record in good})
    for protocol, part in scored:
        parts.append(
            scores(
                [
                    r
                    for r in good
                    if (r["summary"]["protocol"], r["summary"]["part"]) == (protocol, part)
                ]
            )
        )
    if all(
        key in USUAL or key.startswith("methods.")
        for record in records
        for key in record["overrides"]
    ):
        parts.append(beside(group))
    parts.append(curves(good))
    parts.append(circumstances(records))
    failed = [
        f"- {r['label']}, seed {r['seed']}: {r['failure']} ([{r['file']}]({link(r)}))"
        for r in records
        if "failure" in r
    ]
    if failed:
        parts.append("Runs that failed:\n\n" + "\n".join(failed))
    if notes := dict.fromkeys(record["note"] for record in records if record.get("note")):
        parts.append("Notes of the records:\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(filter(None, parts))


def scores(records: list[Record]) -> str:
    """The rows of one protocol and part, and their means over seeds."""
    summary = records[0]["summary"]
    classes = list(summary["classes"])
    distances = [
        name for name in summary["mean"] if name.partition("_")[0] in ("hd95", "assd", "asd")
    ]
    heads = [f"{name.partition('_')[0].upper()} {name.partition('_')[2]}" for name in distances]
    metrics = ["dice", "jaccard", *distances]
    rows, seeds = [], defaultdict(list)
    for record in records:
        one = record["summary"]
        dice = one["mean"]["dice"]
        values = [
            value(one["mean"], "dice"),
            *(value(one["classes"][name], "dice") for name in classes),
        ]
        values += [value(one["mean"], metric) for metric in metrics[1:]]
        seeds[record["label"], checkpoint(record)].append((record["seed"], values))
        shown = [number(v) for v in values]
        interval = f"{100 * dice['low']:.1f} to {100 * dice['high']:.1f}"
        rows.append(
            [
                record["label"],
                str(record["seed"]),
                checkpoint(record),
                f"{one['step']:,}",
                f"**{shown[0]}**",
                interval,
                *shown[1:],
                f"[{record['file'].removesuffix('.json')}]({link(record)})",
            ]
        )
    for (name, which), several in seeds.items():
        if len(several) > 1:
            shown = [
                spread(column) for column in zip(*(values for _, values in several), strict=True)
            ]
            rows.append(
                [
                    name,
                    f"{len(several)} seeds",
                    which,
                    "",
                    f"**{shown[0]}**",
                    "SD over seeds",
                    *shown[1:],
                    "",
                ]
            )
    title = f"**{summary['protocol']} protocol, {summary['part']}: {summary['cases']} cases** ({summary['interval']})"
    head = [
        "method",
        "seed",
        "checkpoint",
        "step",
        "Dice %",
        "95 % CI",
        *classes,
        "Jaccard %",
        *heads,
        "file",
    ]
    return f"{title}\n\n{table(head, rows)}"


def curves(records: list[Record]) -> str:
    """Dice on the validation cases over training: one row a run, at most ten of its steps."""
    runs = {
        (record["label"], record["seed"]): record["validation"]
        for record in records
        if record.get("validation")
    }
    if not runs:
        return ""
    shared = [
        step for step in next(iter(runs.values())) if all(step in run for run in runs.values())
    ]
    stride = -(-len(shared) // 10)
    steps = shared[::-1][::stride][::-1]  # the last one among them
    rows = [
        [name, str(seed), *(f"{run[step]:.1f}" for step in steps)]
        for (name, seed), run in runs.items()
    ]
    title = "Dice % on the validation cases by step:"
    return f"{title}\n\n{table(['run', 'seed', *(f'{int(step):,}' for step in steps)], rows)}"


def beside(group: Group) -> str:
    """The published rows of the same setting."""
    rows = []
    for row in published_rows(group.dataset, group.labeled):
        figures = (
            "" if figure is None else f"{figure:.2f}"
            for figure in (row.dice, row.jaccard, row.hd95, row.asd)
        )
        rows.append([row.method, row.protocol, row.source, *figures])
    head = ["published", "protocol", "source", "Dice %", "Jaccard %", "HD95 px", "ASD px"]
    return table(head, rows) if rows else ""


def circumstances(records: list[Record]) -> str:
    """Who ran what where: one row per run, and the commands."""
    rows = dict.fromkeys(
        (
            record["label"],
            str(record["seed"]),
            record["commit"],
            record["machine"],
            record["device"],
            record["versions"]["torch"],
            number(record["seconds"]),
            number(record["steps_per_second"]),
        )
        for record in records
    )
    head = ["run", "seed", "commit", "machine", "device", "torch", "wall seconds", "steps/s"]
    commands = dict.fromkeys(record["command"] for record in records)
    return table(head, [list(row) for row in rows]) + "\n\n```\n" + "\n".join(commands) + "\n```"


def value(summaries: dict[str, Any], metric: str) -> float | None:
    """The mean of a metric; overlaps in percent."""
    found: float | None = summaries[metric]["mean"]
    return found if found is None or "_" in metric else 100 * found


def number(one: float | None) -> str:
    return "–" if one is None else f"{one:.1f}"


def spread(values: tuple[float | None, ...]) -> str:
    there = [one for one in values if one is not None]
    return f"{mean(there):.1f} ± {stdev(there):.1f}" if len(there) > 1 else "–"


def checkpoint(record: Record) -> str:
    name = Path(record["summary"].get("checkpoint", "")).name
    return CHECKPOINTS.get(name, name)


def link(record: Record) -> str:
    return f"../benchmarks/results/{record['file']}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    main()
