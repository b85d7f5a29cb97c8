"""A table of several runs' scores, from the summary.json that `crkd evaluate` wrote: compare.py RUN RUN …"""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def main(folders: list[Path]) -> None:
    summaries = [summary for folder in folders for summary in read(folder)]
    if len({(summary["dataset"], summary["part"], summary["protocol"]) for summary in summaries}) != 1:
        sys.exit("error: give runs that were evaluated on the same part of one data set under one protocol")
    first = summaries[0]
    title = f"{first['dataset']}, {first['part']} ({first['cases']} cases), {first['protocol']} protocol"
    distance = next(name for name in first["mean"] if name.startswith("hd95"))
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for column in ("labelled", "Dice %", "95 % CI", *first["classes"], distance):
        table.add_column(column, justify="right")
    for summary in summaries:
        table.add_row(summary["method"], str(summary["labeled"]), *row(summary, distance))
    Console().print(table)


def read(folder: Path) -> list[dict[str, Any]]:
    """The summaries of the evaluations of one run. Exits where there is none."""
    files = sorted(folder.glob("evaluation-*/summary.json"))
    if not files:
        sys.exit(f"error: {folder} has no evaluation; run: crkd evaluate {folder}/best.pth")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def row(summary: dict[str, Any], distance: str) -> list[str]:
    dice = summary["mean"]["dice"]
    classes = [f"{100 * scores['dice']['mean']:.1f}" for scores in summary["classes"].values()]
    far = summary["mean"][distance]["mean"]
    return [
        f"{100 * dice['mean']:.1f}",
        f"{100 * dice['low']:.1f} to {100 * dice['high']:.1f}",
        *classes,
        "–" if far is None else f"{far:.1f}",
    ]


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
