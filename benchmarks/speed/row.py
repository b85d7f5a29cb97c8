"""A row of the benchmark: one piece of work, done the published way (or by a peer) and crkd's way.

The schema of a speed file, benchmarks/results/speed-*.json, whatever the device:

    device       "cpu" or "cuda"
    machine      name of the processor or GPU
    flags        what of it matters: ["avx512_bf16"], or []
    precision    crkd's: "bf16" or "fp32"; the baseline computes in fp32
    threads      of torch
    load         what the machine did besides: its load average before the run
    versions     {"python": …, "torch": …, …}
    command, commit, date, inputs, note     text: what was run, on which code, when, on what data, anything to add
    seconds      of the whole run
    bound        [{"what": "convolution …", "gflops_per_s": …}, {"what": "copy …", "gb_per_s": …}] of the same run; may be empty
    rows         a list of `Row`s, each with `ratio` and `met` beside its own fields

Only name, group and work must be there in a row of another program: the rest defaults as below.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from benchmarks.speed.timing import Sample


@dataclass
class Row:
    name: str  # rows of a growth series share it
    group: Literal["target", "growth", "peer", "compile", "other"]
    work: str  # in words, with sizes
    baseline_s: float | None = None  # median seconds the published way, or a peer's
    crkd_s: float | None = None
    value: float | None = None  # what is not a pair of times: a share, seconds of a start
    unit: str = ""  # of value: %, s
    target: float | None = None  # least ratio, or largest value
    repeats: int = 0
    note: str = ""
    size: float | None = None  # growth: what grows
    baseline_gb: float | None = None  # peak resident memory
    crkd_gb: float | None = None
    detail: dict[str, Any] = field(
        default_factory=dict
    )  # flops (crkd's), shares {part: of a step}, dice, all times

    @property
    def ratio(self) -> float | None:
        if self.baseline_s is None or self.crkd_s is None:
            return None
        return self.baseline_s / self.crkd_s

    @property
    def gflops_per_s(self) -> float | None:
        """The rate of crkd's convolutions and products over all of its time."""
        flops = self.detail.get("flops")
        return flops / self.crkd_s / 1e9 if flops and self.crkd_s else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        if self.value is not None:
            return self.value <= self.target
        return self.ratio is not None and self.ratio >= self.target

    def tree(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}

    def cells(self) -> list[str]:
        """Baseline, crkd, ratio, target, met, as text."""
        seconds = [
            "" if value is None else duration(value) for value in (self.baseline_s, self.crkd_s)
        ]
        sign, unit = "≥", "×"
        if self.value is not None:
            seconds[1] = (
                duration(self.value) if self.unit == "s" else f"{self.value:.2g} {self.unit}"
            )
            sign, unit = "≤", f" {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:.1f}×"
        target = "" if self.target is None else f"{sign} {self.target:g}{unit}"
        met = {None: "", True: "yes", False: "no"}[self.met]
        return [*seconds, ratio, target, met]


def read(tree: dict[str, Any]) -> Row:
    """The row that `tree` wrote down."""
    known = {one.name for one in fields(Row)}
    return Row(**{key: value for key, value in tree.items() if key in known})


def duration(seconds: float) -> str:
    """Three figures: 12.3 s, 45.6 ms."""
    value, unit = (seconds, "s") if seconds >= 1.0 else (1e3 * seconds, "ms")
    return f"{value:#.3g}".rstrip(".") + f" {unit}"


def timed(row: Row, baseline: Sample, crkd: Sample) -> Row:
    """`row` with the medians and the peak memory of both ways."""
    row.baseline_s = baseline.median
    row.detail["baseline_all_s"] = baseline.seconds
    row.baseline_gb = baseline.gigabytes
    return alone(row, crkd)


def alone(row: Row, crkd: Sample) -> Row:
    """`row` with crkd's median and peak memory, where there is nothing to compare with."""
    row.crkd_s, row.repeats = crkd.median, len(crkd.seconds)
    row.detail["crkd_all_s"] = crkd.seconds
    row.crkd_gb = crkd.gigabytes
    return row
