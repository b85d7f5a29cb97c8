"""Rows of training: a step and its parts, its wait for data, and how it grows."""

from collections.abc import Iterator, Sequence
from math import prod

from benchmarks.published import dense_bytes
from benchmarks.speed.inputs import Inputs
from benchmarks.speed.loops import PublishedLoop, dissect, steps_in_turn
from benchmarks.speed.row import Row, timed
from benchmarks.speed.timing import Patience

NAMES = {"acdc": "ACDC", "la": "LA"}
DENSE = "the baseline projects every pixel to 256 channels, as published"
DRAWN = (
    "the baseline draws its 256 samples before it projects them, which favors it: projecting every pixel, as published, "
    "would keep {:.1f} GB for the backward pass"
)


def step(
    inputs: Inputs,
    row: Row,
    name: str,
    size: Sequence[int] | None = None,
    batch: int | None = None,
    dense: bool = False,
    patience: Patience | None = None,
) -> Row:
    """`row` with a CRKD step of data set `name`, at its published frame and batch or others."""
    run = inputs.run(name, size, batch)
    data = run.checkpoint.config.data
    kept = dense_bytes(data.labeled, data.frame.size)
    shape = "×".join(map(str, data.frame.size))
    row.work = f"CRKD step, {NAMES[name]} {shape}, {data.labeled} + {data.unlabeled}"
    row.note = DENSE if dense else DRAWN.format(kept / 1e9)
    return timed(
        row, *steps_in_turn(run, PublishedLoop(run, dense), patience or Patience(0.0, least=2))
    )


def step_acdc(inputs: Inputs) -> Iterator[Row]:
    row = Row("step-acdc", "target", "", target=5.0, size=2 * inputs.sizes.images)
    yield from _step(inputs, row, "acdc")
    once = Patience(0.0, least=1)
    yield step(
        inputs,
        Row("step-acdc-dense", "other", ""),
        "acdc",
        batch=inputs.sizes.few_images,
        dense=True,
        patience=once,
    )


def step_la(inputs: Inputs) -> Iterator[Row]:
    yield from _step(
        inputs, Row("step-la", "target", "", target=6.0, size=prod(inputs.sizes.patch)), "la"
    )
    once = Patience(0.0, least=1)
    yield step(
        inputs,
        Row("step-la-dense", "other", ""),
        "la",
        inputs.sizes.small_patch,
        dense=True,
        patience=once,
    )


def step_published(inputs: Inputs) -> Iterator[Row]:
    """ACDC's step at the published batch as published. It takes 23 GB; LA's would take more than twice as much."""
    row = step(inputs, Row("step-acdc-published", "target", "", target=5.0), "acdc", dense=True)
    row.work += ", every pixel projected"
    yield row


def _step(inputs: Inputs, row: Row, name: str) -> Iterator[Row]:
    """`row` with the published step and its anatomy, and the row of the wait for data."""
    step(inputs, row, name, patience=Patience(inputs.sizes.seconds, least=2, most=7))
    anatomy = dissect(inputs.run(name))
    row.detail |= {"flops": anatomy.flops, "shares": anatomy.shares}
    yield row
    yield Row(
        f"waiting-{name}",
        "target",
        f"{NAMES[name]} step waiting for data",
        value=100.0 * anatomy.waiting,
        unit="%",
        target=2.0,
        repeats=2,
        note="share of the loop's time",
    )


def grow_batch(inputs: Inputs) -> Iterator[Row]:
    for batch in inputs.sizes.batches:
        yield step(inputs, Row("grow-batch", "growth", "", size=2 * batch), "acdc", batch=batch)


def grow_image(inputs: Inputs) -> Iterator[Row]:
    for side in inputs.sizes.sides:
        yield step(inputs, Row("grow-image", "growth", "", size=side), "acdc", (side, side), 1)
