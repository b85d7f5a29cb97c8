"""Writes what a step of each method costs into docs/methods.md and configs/about/costs.yaml, and published scores into the first.

From benchmarks/results/methods-*.json and configs/about/published.yaml.

python -m benchmarks.methods_page
"""

import json
import re
from pathlib import Path
from typing import Any

from crkd_cli.evaluation.literature import all_published_rows
from crkd_cli.paths import atomic_write

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, COSTS = (
    ROOT / "benchmarks" / "results",
    ROOT / "docs" / "methods.md",
    ROOT / "configs" / "about" / "costs.yaml",
)
PLACE = r"(?<=<!-- {0} -->\n).*?(?=<!-- /{0} -->)"
NAMES = {"acdc": "ACDC", "la": "LA"}
SHOWN = "acdc"  # whose figures `crkd train --help` gives


def main() -> None:
    record = read()
    for file, text in (
        (PAGE, page(PAGE.read_text(encoding="utf-8"), record)),
        (COSTS, costs(record)),
    ):
        with atomic_write(file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read() -> dict[str, Any]:
    """The record; there is one."""
    (file,) = RESULTS.glob("methods-*.json")
    return {**json.loads(file.read_text(encoding="utf-8")), "file": file.name}


def page(text: str, record: dict[str, Any]) -> str:
    """`text` with the table of `record`, and that of the published scores, between their marks."""
    for name, made in (("costs", table(record)), ("published", scores())):
        text = re.sub(PLACE.format(name), lambda _, made=made: made, text, flags=re.DOTALL)
    return text


def scores() -> str:
    """One row for everything that was published."""
    lines = ["| setting | method | Dice % | protocol | source |", "|---|---|---|---|---|"]
    for row in all_published_rows():
        lines.append(
            f"| {row.dataset.upper()}-{row.labeled} | {row.method} | {row.dice} | {row.protocol} | {row.source} |"
        )
    return "\n".join(lines) + "\n"


def table(record: dict[str, Any]) -> str:
    """One row a method: its step beside that of supervised, and beside its networks' passes alone."""
    by_set: dict[str, dict[str, Any]] = {}
    for row in record["rows"]:
        by_set.setdefault(row["dataset"], {})[row["method"]] = row
    what = "; ".join(
        f"{NAMES[name]} {'×'.join(map(str, row['size']))}, batch {row['batch']} + {row['batch']}"
        for name, row in (
            (name, next(iter(all_published_rows.values())))
            for name, all_published_rows in by_set.items()
        )
    )
    head = [
        f"{NAMES[name]}: {column}"
        for name in by_set
        for column in ("step", "memory", "step ÷ passes")
    ]
    lines = [f"| method | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for method in next(iter(by_set.values())):
        cells = [
            f"{row['step_s_relative']:.1f}× | {row['memory_gb_relative']:.1f}× | {row['overhead']:.2f}"
            for row in (all_published_rows[method] for all_published_rows in by_set.values())
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return (
        "\n".join(lines)
        + f"\n\n{what}. `{record['command']}`, commit {record['commit']}, {record['date']}, {record['machine']}, "
        f"{record['threads']} threads, {record['precision']}; [{record['file']}](../benchmarks/results/{record['file']})."
        f"{' ' + record['note'] if record.get('note') else ''}\n"
    )


def costs(record: dict[str, Any]) -> str:
    """configs/about/costs.yaml."""
    all_published_rows = [row for row in record["rows"] if row["dataset"] == SHOWN]
    lines = [
        f"{row['method']}: {{step: {row['step_s_relative']:.1f}, memory: {row['memory_gb_relative']:.1f}}}"
        for row in all_published_rows
    ]
    note = "# What a step costs, times that of supervised; written by python -m benchmarks.methods_page from a measurement.\n"
    return note + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
