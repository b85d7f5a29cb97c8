"""Write the tables of docs/reliability.md, made of reliability-*.json in benchmarks/results.

python -m benchmarks.reliability_page
"""

import re
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, link, read_json, table, write_text

PAGE = ROOT / "docs" / "reliability.md"
Record = dict[str, Any]


def main() -> None:
    write_text(page(PAGE.read_text(encoding="utf-8"), RESULTS), PAGE)


def page(text: str, folder: Path) -> str:
    """Return `text` with the tables between their marks."""
    for name, make in (("inputs", inputs_table), ("races", races_table)):
        files = sorted(folder.glob(f"reliability-{name}*.json"))
        records = [{**read_json(file), "file": file.name} for file in files]
        made = "\n".join([make(records), *map(circumstances, records)]) + "\n"
        marks = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        text = re.sub(marks, lambda _, made=made: made, text, flags=re.DOTALL)
    return text


def inputs_table(records: list[Record]) -> str:
    """Return the number of inputs and of faults by what was damaged, in all records."""
    counts: dict[str, list[int]] = {}
    for row in (row for record in records for row in record["rows"]):
        for name in (row["what"], "all"):
            inputs, faults = counts.get(name, [0, 0])
            counts[name] = [inputs + row["inputs"], faults + row["faults"]]
    counts["all"] = counts.pop("all")  # the last row
    rows = [[name, f"{inputs:,}", str(faults)] for name, (inputs, faults) in counts.items()]
    return table(["damaged", "inputs", "faults"], rows)


def races_table(records: list[Record]) -> str:
    """Return the number of trials and of faults by command."""
    keys = ("trials", "started", "stopped", "faults")
    rows = [
        [f"`{row['command']}`", *(str(row[key]) for key in keys)]
        for record in records
        for row in record["rows"]
    ]
    return table(["command", "trials", "started", "stopped by a signal", "faults"], rows)


def circumstances(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"`{record['command']}`, commit {record['commit']}, {record['date']}, "
        f"{record['machine']}, {versions}; {link(record['file'])}.\n"
    )


if __name__ == "__main__":
    main()
