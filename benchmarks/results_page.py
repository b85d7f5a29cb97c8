"""Write docs/results.md: the text of benchmarks/results/about.md with tables made of the records.

    python -m benchmarks.results_page

A line `<!-- results: acdc 3 96x96 2500 -->` of the text becomes the tables of that dataset, number
of labeled cases, image size and number of steps; `<!-- results: others -->` becomes a section for
every other setting.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.common import RESULTS, ROOT, link, read_json, table, write_text

PAGE = ROOT / "docs" / "results.md"
PLACEHOLDER = re.compile(r"^<!-- results: (.+) -->$", flags=re.MULTILINE)
SEED = re.compile(r" --set train\.seed=\d+")
# Files that are not records of a run.
OTHER_FILES = ("speed-", "labels-", "methods-", "check-", "statistics-")
CHECKPOINTS = {"best.pth": "best on val", "last.pth": "last"}
VALIDATION_STEPS = 10  # shown at most
Record = dict[str, Any]


def main() -> None:
    write_text(page(RESULTS), PAGE)


def page(folder: Path) -> str:
    """Return the page for the records and the about.md in `folder`."""
    groups = read_records(folder)
    text = (folder / "about.md").read_text(encoding="utf-8")
    others = [key for key in sorted(groups) if key not in PLACEHOLDER.findall(text)]

    def fill(placeholder: re.Match[str]) -> str:
        key = placeholder[1]
        if key == "others":
            return "\n".join(
                f"## {heading(groups[key][0])}\n\n{section(groups[key])}" for key in others
            )
        return section(groups[key]) if key in groups else "No run of this setting is recorded."

    return PLACEHOLDER.sub(fill, text).rstrip() + "\n"


def read_records(folder: Path) -> dict[str, list[Record]]:
    """Return the records by setting, each list sorted by label, seed and checkpoint."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        if file.name.startswith(OTHER_FILES):
            continue
        record = {**read_json(file), "file": file.name}
        setting = record["setting"]
        frame = "x".join(map(str, setting["frame"]))
        key = f"{setting['dataset']} {setting['labeled']} {frame} {setting['steps']}"
        groups[key].append(record)
    for records in groups.values():
        records.sort(key=lambda record: (record["label"], record["seed"], record["file"]))
    return groups


def heading(record: Record) -> str:
    setting = record["setting"]
    frame = " × ".join(map(str, setting["frame"]))
    return (
        f"{setting['dataset']}, {setting['labeled']} labeled, {frame}, {setting['steps']:,} steps"
    )


def section(records: list[Record]) -> str:
    """Return the tables of one setting: test scores, validation scores, and how it was run."""
    parts = []
    if shared := shared_overrides(records):
        settings = ", ".join(f"`{key}` {value}" for key, value in shared.items())
        dataset = records[0]["setting"]["dataset"]
        parts.append(f"All runs differ from `configs/{dataset}.yaml` in: {settings}.\n")
    scored: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        scored[record["evaluation"]["protocol"], record["evaluation"]["part"]].append(record)
    parts += [scores(scored[key]) for key in sorted(scored)]
    parts += [validation(records), circumstances(records), notes(records)]
    return "\n".join(filter(None, parts))


def shared_overrides(records: list[Record]) -> dict[str, Any]:
    """Return the settings, except those of a method, that all `records` override alike."""
    shared = dict(records[0]["overrides"])
    for record in records:
        others = record["overrides"]
        shared = {k: v for k, v in shared.items() if k in others and others[k] == v}
    return {key: value for key, value in shared.items() if not key.startswith("methods.")}


def scores(records: list[Record]) -> str:
    """Return a row for each record of one protocol and part, and the means over seeds."""
    evaluation = records[0]["evaluation"]
    names = [name for name in evaluation["scores"] if name != "mean"]
    distances = [m for m in evaluation["scores"]["mean"] if re.match("hd95|assd|asd", m)]
    rows, seeds = [], defaultdict(list)
    for record in records:
        tree = record["evaluation"]["scores"]
        _, low, high = tree["mean"]["dice"]
        values = [_percent(tree[name]["dice"][0]) for name in ("mean", *names)]
        values += [_percent(tree["mean"]["jaccard"][0])]
        values += [tree["mean"][metric][0] for metric in distances]
        checkpoint = record["evaluation"]["checkpoint"]
        checkpoint = CHECKPOINTS.get(checkpoint, checkpoint)
        seeds[record["label"], checkpoint].append(values)
        first, *others = map(_number, values)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        label, seed = record["label"], str(record["seed"])
        rows.append(
            [label, seed, checkpoint, f"**{first}**", interval, *others, link(record["file"])]
        )
    for (label, checkpoint), several in seeds.items():
        if len(several) > 1:
            first, *others = (_spread(column) for column in zip(*several, strict=True))
            count = f"{len(several)} seeds"
            rows.append([label, count, checkpoint, f"**{first}**", "± SD of seeds", *others, ""])
    head = ["run", "seed", "checkpoint", "Dice %", "95 % CI", *names, "Jaccard %"]
    head += [f"{m.partition('_')[0].upper()} {m.partition('_')[2]}" for m in distances]
    interval = evaluation["interval"].removeprefix("95 %, ")
    title = (
        f"**{evaluation['protocol']} protocol, {evaluation['part']}, {evaluation['cases']} cases**"
    )
    return f"{title} (intervals: {interval})\n\n{table([*head, 'file'], rows)}"


def validation(records: list[Record]) -> str:
    """Return the Dice of the validation cases during training, for one row a run."""
    runs = {(r["label"], r["seed"]): r["validation"] for r in records if r["validation"]}
    if not runs:
        return ""
    steps = [
        step for step in next(iter(runs.values())) if all(step in run for run in runs.values())
    ]
    stride = -(-len(steps) // VALIDATION_STEPS)
    steps = steps[::-1][::stride][::-1]  # with the last one
    rows = []
    for (label, seed), run in runs.items():
        rows.append([label, str(seed), *(f"{run[step]:.1f}" for step in steps)])
    head = ["run", "seed", *(f"{int(step):,}" for step in steps)]
    return f"Dice (%) of the validation cases by step:\n\n{table(head, rows)}"


def circumstances(records: list[Record]) -> str:
    """Return where and how long each run was trained, and the commands."""
    runs: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        runs[record["label"]][record["seed"]] = record
    rows, commands = [], []
    for label, by_seed in runs.items():
        several = list(by_seed.values())
        columns = [
            [str(seed) for seed in by_seed],
            [record["commit"] for record in several],
            [f"{record['machine']}; {record['device']}" for record in several],
            [record["versions"]["torch"] for record in several],
        ]
        cells = [", ".join(dict.fromkeys(column)) for column in columns]
        for key in ("seconds", "steps_per_second"):
            cells += [", ".join(_number(record[key]) for record in several)]
        rows.append([label, *cells])
        commands += [f"# {label}", *merge_seeds(by_seed)]
    head = ["run", "seeds", "commit", "machine", "torch", "seconds", "steps/s"]
    return table(head, rows) + "\n```\n" + "\n".join(commands) + "\n```\n"


def merge_seeds(by_seed: dict[int, Record]) -> list[str]:
    """Return the commands of some runs, once for all that differ only in the seed."""
    commands: dict[str, list[str]] = defaultdict(list)
    for record in by_seed.values():
        commands[SEED.sub("", record["command"])].append(record["command"])
    merged = []
    for several in commands.values():
        longest = max(several, key=len)  # the one of the default seed does not name it
        merged.append(longest if len(several) == 1 else SEED.sub(" --set train.seed=SEED", longest))
    return merged


def notes(records: list[Record]) -> str:
    lines = {}
    for record in records:
        if record["note"]:
            lines[f"- {record['label']}, seed {record['seed']}: {record['note']}."] = None
    return "\n".join([*lines, ""]) if lines else ""


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.1f} ± {stdev(known):.1f}" if len(known) > 1 else "–"


if __name__ == "__main__":
    main()
