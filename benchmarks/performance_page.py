"""Writes docs/performance.md from speed-*.json, smoke-*.json and labels-*.json in benchmarks/results.

python -m benchmarks.performance_page
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.row import Row, duration, read
from crkd_cli.paths import atomic_write

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
PARTS = {
    "forward": "networks forward",
    "backward": "backward pass",
    "losses": "losses, CutMix, sampling",
    "data": "upload and augmentation",
    "optimizer": "optimizer, teacher's average",
}
GROWTH = {
    "grow-batch": ("CRKD step, ACDC, images in a batch", "images"),
    "grow-image": ("CRKD step, ACDC, 1 + 1 images of growing side", "side"),
    "grow-metrics": ("Scores of one class of one case, cubes of growing side", "side"),
    "grow-case": ("Inference over one case (default windows), cubes of growing side", "side"),
}
INTRO = """# Performance

How fast `crkd` is, compared with what, why, how it grows, and what limits it. This page is generated from the speed files under
`benchmarks/results` by `python -m benchmarks.performance_page`; `make bench` measures again on your machine.

**The baseline** is the published way of working, written plainly in `benchmarks/published.py`: one forward pass per stream in
fp32, one sample at a time through the augmentation, every pixel projected to 256 channels before 256 of them are drawn, windows
one by one with the sum on the host, and medpy. Tests hold it equal to `crkd`: the same losses, probabilities and scores from the
same inputs. Both ways run in one process, in turn, after a warm-up; a figure is the median of its repeats, and a ratio is the
baseline's time divided by `crkd`'s. Ratios carry over to similar machines; seconds do not: the targets were set for a processor
with AMX, which gains more from bfloat16. Peak memory is that of the whole process, 0.3 GB of it libraries.

## Why it is fast

- **Less arithmetic for the same result.** CSD ([the loss](methods.md#crkd)) needs 256 projected pixels per stream: `crkd` draws
  them first and projects only those. The three student streams share one forward pass. Surface scores share one search for
  distances.
- **The precision that the hardware has.** bfloat16 where the processor computes in it, losses and scores in fp32; channels-last
  layout.
- **Batches on the device.** Augmentation does not go sample by sample, nor do windows on a GPU; on a CPU one window at a time
  stays in the cache.
- **Memory is used again.** By default the C library takes large blocks from the system anew each time, and every feature map is
  fresh pages that the kernel must clear: half of a step's time on a CPU. `crkd` keeps them; the baseline runs with the default.
- **No waiting.** Stores are memory-mapped, and a thread reads the next batches while a step runs. For a GPU resized slices stay
  in memory, up to 1 GB of the labeled and of the unlabeled ones.
"""


def main() -> None:
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page(RESULTS), encoding="utf-8")


def page(results: Path) -> str:
    """The whole page, from every speed-*.json in `results`, CPUs first."""
    records = [
        json.loads(file.read_text(encoding="utf-8")) | {"file": file.name}
        for file in results.glob("speed-*.json")
    ]
    records.sort(key=lambda record: (record["device"] != "cpu", record["file"]))
    answers = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(results.glob("labels-*.json"))
    ]
    looks = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(results.glob("smoke-*.json"))
    ]
    sections = (part for record in records for part in section(record))
    return "\n".join([INTRO, *sections, *map(memory, looks), *map(same_answer, answers)])


def section(record: dict[str, Any]) -> list[str]:
    """Everything about one machine."""
    rows = [read(tree) for tree in record["rows"]]
    parts = [f"## {record['machine']}\n", facts(record)]
    for title, text in (
        (
            "Against the published way",
            table([row for row in rows if row.group in ("target", "other")]),
        ),
        ("Where a step's time goes", anatomy(rows)),
        ("What limits it", limits(rows, record)),
        ("How it grows", growth(rows)),
        ("Beside other libraries", table([row for row in rows if row.group == "peer"], "peer")),
        (
            "With torch.compile",
            table([row for row in rows if row.group == "compile"], "as it stands", "compiled"),
        ),
    ):
        if text:
            parts += [f"### {title}\n", text]
    return parts


def memory(record: dict[str, Any]) -> str:
    """The GPU memory that a step of every method needs, and how near its loss in bf16 is to that in fp32."""
    rows = [row for row in record["rows"] if "failed" not in row]
    works = dict.fromkeys((row["data"], tuple(row["frame"])) for row in rows)
    found = {(row["data"], row["method"]): row for row in rows}
    names = [f"{data.upper()} {'×'.join(map(str, frame))}" for data, frame in works]
    head = ["method", *(f"{name}, {what}" for name in names for what in ("GB", "loss"))]
    body = []
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for data, _ in works:
            one = found.get((data, name))
            cells += (
                [f"{one['peak_gib'] * 2**30 / 1e9:.1f}", f"{100 * one['difference']:.2g} %"]
                if one
                else ["", ""]
            )
        body.append([name, *cells])
    note = f"\n{record['note']}\n" if record["note"] else ""
    return (
        "## Memory on a GPU\n\nOne step of every method at the published size and batch, on noise with boxes: the most memory "
        "that its tensors take, and by how much its loss in bf16 differs from that in fp32 without dropout. "
        f"`{record['command']}`, {record['device']}, torch {record['torch']}, commit {record['commit']}, {record['date']}; "
        f"the tests marked gpu: {record['tests']}.\n\n" + _markdown(head, body) + note
    )


def same_answer(record: dict[str, Any]) -> str:
    """What benchmarks/labels.py found: whether the faster way gives other labels, or worse ones."""
    columns = {
        "plain_dice": "published way",
        "same_dice": "crkd, published windows",
        "default_dice": "crkd, default windows",
        "same": "Dice of the first two with one another",
    }
    cases = sorted(record["cases"], key=lambda case: -case["plain_dice"])
    rows = [(case["case"], case) for case in cases] + [("**mean**", record["mean"])]
    body = [[name, *(f"{100 * values[key]:.2f}" for key in columns)] for name, values in rows]
    trained = f" trained by `{record['trained_by']}`" if record["trained_by"] else ""
    scans = len(record["cases"])
    return (
        f"## Does speed change the answer?\n\nOne network after {record['step']:,} steps{trained}, over {scans} test scans of "
        f"LA; `crkd` in {record['precision']}, the published way in fp32. `python -m benchmarks.labels`, commit "
        f"{record['commit']}, {record['date']}, {record['machine']}. Dice % against the truth, the scans that the network finds "
        "easiest first. (The network of the LA case above has 60 steps and is sure of little.)\n\n"
        + _markdown(["scan", *columns.values()], body)
    )


def facts(record: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in record["versions"].items() if version
    )
    flags = f" ({', '.join(record['flags'])})" if record.get("flags") else ""
    lines = [
        f"{record['device']}{flags}, {record['threads']} threads; `crkd` in {record['precision']}, the baseline in fp32; "
        f"{record['inputs']}. {versions}.",
        f"`{record['command']}`, commit {record['commit']}, {record['date']}, {record['seconds'] / 60:.0f} minutes; "
        f"[{record['file']}](../benchmarks/results/{record['file']}).",
    ]
    if record.get("note"):
        lines.insert(0, f"**{record['note']}**\n")
    return "\n".join(lines) + "\n"


def table(rows: list[Row], other: str = "baseline", ours: str = "crkd") -> str:
    """Markdown of times, ratios and targets, the notes below."""
    if not rows:
        return ""
    lines = [
        f"| work | {other} | {ours} | ratio | target | met | peak memory: {other}, {ours} |",
        "|---" * 7 + "|",
    ]
    notes: list[str] = []
    for row in rows:
        if row.note and row.note not in notes:
            notes.append(row.note)
        mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
        memory = ", ".join(f"{value:.1f} GB" for value in (row.baseline_gb, row.crkd_gb) if value)
        lines.append(f"| {row.work}{mark} | {' | '.join(row.cells())} | {memory} |")
    return (
        "\n".join(
            [
                *lines,
                "",
                *(
                    f"[{number}] {note[0].upper()}{note[1:]}.\\"
                    for number, note in enumerate(notes, 1)
                ),
            ]
        )
        + "\n"
    )


def anatomy(rows: list[Row]) -> str:
    """The parts of a step."""
    steps = [row for row in rows if "shares" in row.detail]
    if not steps:
        return ""
    body = [
        [words, *(f"{100 * row.detail['shares'][part]:.0f} %" for row in steps)]
        for part, words in PARTS.items()
    ]
    return _markdown(["part of a step", *(row.work for row in steps)], body)


def limits(rows: list[Row], record: dict[str, Any]) -> str:
    """What the machine can do, and how near the arithmetic of the rows comes to it."""
    if not record["bound"]:
        return ""
    rates = [[one["what"], _rate(one)] for one in record["bound"]]
    lines = [
        f"What the machine does when it does nothing else, in {record['precision']}, measured in the same run:\n"
    ]
    lines.append(_markdown(["work", "rate"], rates))
    best = max(one["gflops_per_s"] for one in record["bound"] if "gflops_per_s" in one)
    body = [
        [
            row.work,
            f"{row.detail['flops'] / 1e9:,.0f} GFLOP",
            f"{row.gflops_per_s:,.0f} GFLOP/s",
            f"{100 * row.gflops_per_s / best:.0f} %",
            f"{1e9 * best * row.baseline_s / row.detail['flops']:.1f}×",
        ]
        for row in rows
        if row.gflops_per_s and row.baseline_s
    ]
    if body:
        lines.append(
            "Convolutions and products alone, over all of the time that `crkd` takes, beside the fastest rate of these; and the "
            "ratio that `crkd` would have at that rate if nothing else took any time:\n"
        )
        lines.append(
            _markdown(["work", "arithmetic", "rate", "of the fastest", "largest ratio"], body)
        )
    return "\n".join(lines)


def _rate(bound: dict[str, Any]) -> str:
    return (
        f"{bound['gb_per_s']:,.0f} GB/s"
        if "gb_per_s" in bound
        else f"{bound['gflops_per_s']:,.0f} GFLOP/s"
    )


def growth(rows: list[Row]) -> str:
    """A table per series."""
    parts = []
    for name, (title, what) in GROWTH.items():
        series = [row for row in rows if row.name == name]
        if name == "grow-batch" and series:
            series += [row for row in rows if row.name == "step-acdc"]
        if series:
            parts.append(_series(title, what, series))
    counted = [row for row in rows if row.name.startswith("grow-cases")]
    if counted:
        parts.append(_cases(counted))
    return "\n".join(parts)


def _series(title: str, what: str, series: list[Row]) -> str:
    cells: list[tuple[str, Callable[[Row], str]]] = [
        (what, lambda row: f"{row.size:g}"),
        ("baseline", lambda row: _time(row.baseline_s)),
        ("crkd", lambda row: _time(row.crkd_s)),
        ("ratio", lambda row: f"{row.ratio:.1f}×" if row.ratio else ""),
        ("peak memory of crkd", lambda row: f"{row.crkd_gb:.1f} GB" if row.crkd_gb else ""),
    ]
    return f"{title}:\n\n" + _markdown(
        [name for name, _ in cells], [[cell(row) for _, cell in cells] for row in series]
    )


def _cases(rows: list[Row]) -> str:
    sizes = sorted({row.size for row in rows if row.size is not None})
    names = list(dict.fromkeys(row.name for row in rows))
    times = {(row.name, row.size): _time(row.crkd_s) for row in rows}
    body = [
        [name.removeprefix("grow-cases: "), *(times.get((name, size), "") for size in sizes)]
        for name in names
    ]
    return "What depends on the number of cases:\n\n" + _markdown(
        ["cases", *(f"{size:g}" for size in sizes)], body
    )


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


if __name__ == "__main__":
    main()
