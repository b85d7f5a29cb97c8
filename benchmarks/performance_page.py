"""Write docs/performance.md, tables of two other pages, and configs/about/costs.yaml.

    python -m benchmarks.performance_page

The first is the text of benchmarks/results/performance.md with tables made of speed-*.json there.
The tables of docs/augmentation.md are made of augment-*.json, and those of docs/methods.md and the
last file of methods-*.json and configs/about/published.yaml.
"""

import re
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, link, read_json, table, write_text
from crkd_cli.evaluation.literature import all_published_rows

PAGE = ROOT / "docs" / "performance.md"
METHODS_PAGE = ROOT / "docs" / "methods.md"
AUGMENTATION_PAGE = ROOT / "docs" / "augmentation.md"
COSTS = ROOT / "configs" / "about" / "costs.yaml"
Record = dict[str, Any]


def main() -> None:
    write_text(page(RESULTS), PAGE)
    costs = read(RESULTS, "methods")[0]
    write_text(methods_page(METHODS_PAGE.read_text(encoding="utf-8"), costs), METHODS_PAGE)
    write_text(costs_yaml(costs), COSTS)
    text = AUGMENTATION_PAGE.read_text(encoding="utf-8")
    write_text(augmentation_page(text, read(RESULTS, "augment")[0]), AUGMENTATION_PAGE)


def read(folder: Path, kind: str) -> list[Record]:
    """Return the records KIND-*.json of `folder`."""
    files = sorted(folder.glob(f"{kind}-*.json"))
    return [{**read_json(file), "file": file.name} for file in files]


def page(folder: Path) -> str:
    text = (folder / "performance.md").read_text(encoding="utf-8")
    sections = [f"## {r['machine']}\n\n{speed_table(r)}" for r in read(folder, "speed")]
    return text.replace("<!-- speed -->\n", "\n".join(sections))


def speed_table(record: Record) -> str:
    rows = []
    for row in record["rows"]:
        cells = [row["work"], "", "", "", "", "", row.get("note", "")]
        if "value" in row:
            cells[2] = f"{row['value']:.2g} %"
            if row["unit"] == "s":
                cells[2] = duration(row["value"])
        else:
            baseline, crkd = row["baseline_s"], row["crkd_s"]
            cells[1:4] = duration(baseline), duration(crkd), f"{baseline / crkd:.1f}×"
        for number, key in enumerate(("baseline_gb", "crkd_gb"), 4):
            if key in row:
                cells[number] = f"{row[key]:.1f}"
        rows.append(cells)
    head = ["work", "baseline", "crkd", "ratio", "GB: baseline", "GB: crkd", "note"]
    return f"{table(head, rows)}\n{circumstances(record)}\n"


def circumstances(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    text = f"`{record['command']}`, commit {record['commit']}, {record['date']}, "
    text += f"{record['machine']}, {record['device']}, {versions}; {link(record['file'])}."
    return f"{text} {record['note']}".rstrip()


def methods_page(text: str, record: Record) -> str:
    """Return `text` with the tables of costs and of published scores between their marks."""
    text = replace_marked(text, "costs", costs_table(record))
    return replace_marked(text, "published", published_table())


def augmentation_page(text: str, record: Record) -> str:
    """Return `text` with the table of what augmentation costs between its marks."""
    rows = []
    for row in record["rows"]:
        size = "×".join(map(str, row["size"]))
        setting = f"{row['dataset'].upper()} {size}, {row['batch']} + {row['batch']}"
        cells = [f"{row['published_s'] * 1e3:.0f} ms", f"{row['strong_s'] * 1e3:.0f} ms"]
        shares = [f"{row['share']:.1%}", f"{row['more']:.1%}"]
        rows.append([setting, row["method"], f"{row['step_s']:.2f} s", *cells, *shares])
    head = ["setting", "method", "step", "published", "strong", "share of strong", "more"]
    return replace_marked(text, "cost", f"{table(head, rows)}\n{circumstances(record)}\n")


def replace_marked(text: str, name: str, made: str) -> str:
    """Return `text` with `made` between the marks of `name`."""
    marks = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
    return re.sub(marks, lambda _: made, text, flags=re.DOTALL)


def published_table() -> str:
    rows = []
    for row in all_published_rows():
        setting = f"{row.dataset.upper()}-{row.labeled}"
        rows.append([setting, row.method, str(row.dice), row.protocol, row.source])
    return table(["setting", "method", "Dice %", "protocol", "source"], rows)


def costs_table(record: Record) -> str:
    cells: dict[str, list[str]] = {}
    settings: dict[str, str] = {}
    for row in record["rows"]:
        costs = [f"{row['step']:.1f}×", f"{row['memory']:.1f}×"]
        cells.setdefault(row["method"], [row["method"]]).extend(costs)
        size, batch = "×".join(map(str, row["size"])), row["batch"]
        settings[row["dataset"].upper()] = f"{size}, batch {batch} + {batch}"
    head = ["method", *(f"{name}: {cost}" for name in settings for cost in ("step", "memory"))]
    text = "; ".join(f"{name} {setting}" for name, setting in settings.items())
    return f"{table(head, list(cells.values()))}\n{text}. {circumstances(record)}\n"


def costs_yaml(record: Record) -> str:
    text = "# A step's cost over supervised's. Written by python -m benchmarks.performance_page.\n"
    for row in record["rows"]:
        if row["dataset"] == "acdc":  # which `crkd methods` shows
            costs = f"step: {row['step']:.1f}, memory: {row['memory']:.1f}"
            text += f"{row['method']}: {{{costs}}}\n"
    return text


def duration(seconds: float) -> str:
    """Return three figures: 12.3 s, 45.6 ms."""
    value, unit = (seconds, "s") if seconds >= 1.0 else (1e3 * seconds, "ms")
    return f"{value:#.3g}".rstrip(".") + f" {unit}"


if __name__ == "__main__":
    main()
