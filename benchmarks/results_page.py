"""Write docs/results.md: the text of benchmarks/results/about.md with tables made of the records.

    python -m benchmarks.results_page

`<!-- results: acdc 3 96x96 2500 -->` becomes the tables of that dataset, number of labeled cases,
image size and number of steps; `<!-- results: others -->` becomes the other settings' sections.
`<!-- recipes: acdc 3 128x128 2500 -->` becomes a table of methods by augmentation instead.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.common import RESULTS, ROOT, link, read_json, table, write_text
from benchmarks.recipes import recipes
from crkd_cli import renamed
from crkd_cli.metrics.names import metric_heading

PAGE = ROOT / "docs" / "results.md"
PLACEHOLDER = re.compile(r"^<!-- (results|recipes): (.+) -->$", flags=re.MULTILINE)
SEED = re.compile(r" --set train\.seed=\d+")
METHOD = re.compile(r"--method (\S+)")
# The start of the names of records that are not of a run.
OTHER_FILES = (
    "augment-",
    "check-",
    "commands-",
    "labels-",
    "methods-",
    "released-",
    "reliability-",
    "speed-",
    "statistics-",
)
VALIDATION_STEPS = 10  # shown at most
Record = dict[str, Any]


def main() -> None:
    write_text(page(RESULTS), PAGE)


def page(folder: Path) -> str:
    """Return the page for the records and the about.md in `folder`."""
    settings = read_records(folder)
    text = (folder / "about.md").read_text(encoding="utf-8")
    named = {key for _, key in PLACEHOLDER.findall(text)}
    others = [
        f"## {key} steps\n\n{section(settings[key])}" for key in sorted(settings.keys() - named)
    ]

    def fill(match: re.Match[str]) -> str:
        kind, key = match.groups()
        if key == "others":
            return "\n".join(others)
        if key not in settings:
            return ""
        records = settings[key]
        if kind == "recipes":
            return f"{recipes(records)}\n{origin(records)}\n{loops(records)}"
        return section(records)

    return PLACEHOLDER.sub(fill, text).rstrip() + "\n"


def read_records(folder: Path) -> dict[str, list[Record]]:
    """Return the records by setting, each list sorted by label, seed and file."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        if not file.name.startswith(OTHER_FILES):
            record = {**read_json(file), "file": file.name}
            groups[record["setting"]].append(record)
    for records in groups.values():
        records.sort(key=lambda record: (record["label"], record["seed"], record["file"]))
    return groups


def section(records: list[Record]) -> str:
    """Return the tables of one setting: test scores, validation scores, and how it was run."""
    scored: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        scored[record["evaluation"]["protocol"], record["evaluation"]["part"]].append(record)
    parts = [scores(scored[key]) for key in sorted(scored)]
    return "\n".join([*parts, validation(records), circumstances(records), notes(records)])


def scores(records: list[Record]) -> str:
    """Return a row for each record of one protocol and part, and the means over seeds."""
    evaluation = records[0]["evaluation"]
    names = [name for name in evaluation["scores"] if name != "mean"]
    metrics = ["jaccard", *(m for m in evaluation["scores"]["mean"] if re.match("hd95|as", m))]
    rows, seeds = [], defaultdict(list)
    for record in records:
        tree, label = record["evaluation"]["scores"], record["label"]
        checkpoint = record["evaluation"]["checkpoint"].removesuffix(".pth")
        _, low, high = tree["mean"]["dice"]
        values = [percent(tree[name]["dice"][0]) for name in ("mean", *names)]
        for metric in metrics:
            value = tree["mean"][metric][0]
            values.append(percent(value) if metric == "jaccard" else value)
        seeds[label, checkpoint].append(values)
        row = [label, str(record["seed"]), checkpoint, f"{100 * low:.1f} to {100 * high:.1f}"]
        rows.append([*row, *map(number, values), link(record["file"], "file")])
    for (label, checkpoint), several in seeds.items():
        if len(several) > 1:
            spreads = map(spread, zip(*several, strict=True))
            rows.append([label, f"{len(several)} seeds", checkpoint, "± SD", *spreads, ""])
    head = ["run", "seed", "checkpoint", "95 % CI", "Dice %", *names, *map(metric_heading, metrics)]
    title = f"**{evaluation['protocol']} protocol, {evaluation['part']}, "
    title += f"{evaluation['cases']} cases** ({evaluation['interval']})"
    return f"{title}\n\n{table([*head, 'record'], rows)}"


def validation(records: list[Record]) -> str:
    """Return the Dice of the validation cases during training, with one row for each run."""
    runs = {(r["label"], r["seed"]): r["validation"] for r in records if r["validation"]}
    if not runs:
        return ""
    steps = [s for s in next(iter(runs.values())) if all(s in run for run in runs.values())]
    stride = -(-len(steps) // VALIDATION_STEPS)
    steps = steps[::-1][::stride][::-1]  # with the last one
    rows = []
    for (label, seed), run in runs.items():
        rows.append([label, str(seed), *(number(run[step]) for step in steps)])
    head = ["run", "seed", *(f"step {int(step):,}" for step in steps)]
    return f"Dice % of the validation cases:\n\n{table(head, rows)}"


def circumstances(records: list[Record]) -> str:
    """Return where and how long each run was trained, and the commands, once for all seeds."""
    rows, commands = {}, defaultdict(list)
    for record in records:
        where = f"{record['machine']}; {record['device']}"
        cells = [record["label"], str(record["seed"]), record["commit"], where]
        times = [number(record["seconds"]), number(record["steps_per_second"])]
        rows[tuple(cells)] = [*cells, record["versions"]["torch"], *times]
        commands[record["label"], SEED.sub("", record["command"])].append(record)
    lines = []
    for (label, _), several in commands.items():
        seeds = list(dict.fromkeys(str(record["seed"]) for record in several))
        command = with_current_keys(several[0]["command"])
        if len(seeds) > 1:
            command = SEED.sub("", command)
            seeds[1:] = [f"--set train.seed={seed}" for seed in seeds[1:]]
        lines.append(f"# {label}, seed {', '.join(seeds)}\n{command}")
    head = ["run", "seed", "commit", "machine", "torch", "seconds", "steps/s"]
    return table(head, list(rows.values())) + "\n```\n" + "\n".join(lines) + "\n```\n"


def origin(records: list[Record]) -> str:
    """Return a sentence that says at which commits and on which machines the runs were trained."""
    commits = dict.fromkeys(record["commit"] for record in records)
    machines = dict.fromkeys(
        f"{record['machine']}; {record['device']}; PyTorch {record['versions']['torch']}"
        for record in records
    )
    return f"Commits {', '.join(commits)}; {' or '.join(machines)}. Trained with:\n"


def loops(records: list[Record]) -> str:
    """Return the commands: for each augmentation, one loop over methods with the same seeds."""
    seeds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for record in records:
        command = SEED.sub("", with_current_keys(record["command"]))
        (method,) = METHOD.findall(command)
        seeds[METHOD.sub("--method $method", command), method].append(record["seed"])
    methods: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for (command, method), several in seeds.items():
        methods[command, tuple(several)].append(method)
    lines = []
    for (command, several), names in sorted(methods.items()):
        if "data.augment=strong" in command:  # with a folder of its own
            command += " --out runs/$method-strong"
        command += f" --seeds {','.join(map(str, several))}"
        lines.append(f"for method in {' '.join(names)}; do {command}; done\n")
    return f"```\n{''.join(lines)}```\n"


def with_current_keys(command: str) -> str:
    """Replace the keys of earlier versions in a command, so that it can be run today."""
    for old, new in renamed.KEYS.items():
        command = re.sub(rf"(?<=--set ){re.escape(old)}(?==)", new, command)
    return command


def notes(records: list[Record]) -> str:
    lines = [f"- {r['label']}, seed {r['seed']}: {r['note']}.\n" for r in records if r["note"]]
    return "".join(dict.fromkeys(lines))


def percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.1f} ± {stdev(known):.1f}" if len(known) > 1 else "–"


if __name__ == "__main__":
    main()
