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
        made = make(read_json(folder / f"reliability-{name}.json"))
        source = f"reliability-{name}.json"
        marks = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        made = f"{made}\n{circumstances(read_json(folder / source))} {link(source)}.\n"
        text = re.sub(marks, lambda _, made=made: made, text, flags=re.DOTALL)
    return text


def inputs_table(record: Record) -> str:
    """Return the number of inputs and of faults by what was damaged."""
    rows = [[row["what"], f"{row['inputs']:,}", str(row["faults"])] for row in record["rows"]]
    inputs, faults = (sum(row[key] for row in record["rows"]) for key in ("inputs", "faults"))
    rows.append(["all", f"{inputs:,}", str(faults)])
    return table(["damaged", "inputs", "faults"], rows)


def races_table(record: Record) -> str:
    """Return the number of trials and of faults by command."""
    keys = ("trials", "started", "stopped", "faults")
    rows = [[f"`{row['command']}`", *(str(row[key]) for key in keys)] for row in record["rows"]]
    return table(["command", "trials", "started", "stopped by a signal", "faults"], rows)


def circumstances(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"`{record['command']}`, commit {record['commit']}, {record['date']}, "
        f"{record['machine']}, {versions};"
    )


if __name__ == "__main__":
    main()
