"""The cost of methods: every figure is there, and the passes that are made again are those of the step."""

from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import methods, methods_page
from benchmarks.speed.inputs import Sizes, synthetic

TINY = Sizes(
    acdc=(4, 40, 36),
    la=(52, 40, 36),
    image=(32, 32),
    images=2,
    patch=(48, 32, 32),
    training_patch=(48, 32, 32),
)


@pytest.mark.slow
def test_cost_of_a_method_beside_supervised(tmp_path: Path) -> None:
    record = methods.measure(synthetic(tmp_path, TINY), ["supervised", "mean_teacher"], "a command")
    assert [(row["dataset"], row["method"]) for row in record["rows"]] == [
        (dataset, method) for dataset in ("acdc", "la") for method in ("supervised", "mean_teacher")
    ]
    for base, other in (record["rows"][:2], record["rows"][2:]):
        assert base["step_s_relative"] == 1.0
        assert other["step_s_relative"] == pytest.approx(other["step_s"] / base["step_s"])
        assert base["overhead"] == pytest.approx(base["step_s"] / base["passes_s"])


def test_passes_alone_do_the_arithmetic_of_the_step(tmp_path: Path) -> None:
    """supervised has nothing but the networks' convolutions and a loss without any."""
    run = synthetic(tmp_path, TINY).run("acdc", method="supervised")
    calls: list[methods.Call] = []
    methods.record(run, calls)
    batch = run.loader.batch(run.loader.read(0), 0)
    with FlopCounterMode(display=False) as whole:
        run.method.losses(batch, 0)["total"].backward()
    with FlopCounterMode(display=False) as again:
        methods.passes(run, calls)
    assert [call.function.__name__ for call in calls] == ["encode", "forward", "forward"]
    assert again.get_total_flops() == whole.get_total_flops()


@pytest.mark.parametrize(
    ("method", "kind", "count"), [("crkd", "Projection", 1), ("lefed", "Sequential", 5)]
)
def test_heads_of_a_method_are_among_its_passes(
    tmp_path: Path, method: str, kind: str, count: int
) -> None:
    """CRKD's projection, LeFeD's side outputs: beside the parts of networks, and let go again."""
    run = synthetic(tmp_path, TINY).run("acdc", method=method)
    calls: list[methods.Call] = []
    methods.record(run, calls)
    run.method.losses(run.loader.batch(run.loader.read(0), 0), 0)
    assert [type(call.owner).__name__ for call in calls].count(kind) == count
    before = len(calls)
    methods.forget(run)
    methods.passes(run, calls)
    assert len(calls) == before


def test_rows_measured_later_replace_those_of_their_method() -> None:
    def rows(*steps: float) -> list[dict[str, object]]:
        return [
            {"dataset": "acdc", "method": name, "step_s": s}
            for name, s in zip(("supervised", "crkd"), steps, strict=True)
        ]

    later = {"rows": rows(3.0, 4.0), "command": "c", "commit": "new", "date": "d"}
    record = methods.updated({"rows": rows(1.0, 2.0), "commit": "old"}, later)
    assert [row["step_s"] for row in record["rows"]] == [1.0, 4.0]
    assert record["commit"] == "old"
    assert record["note"] == "Some rows were measured later: `c`, commit new, d."


def test_page_and_configuration_are_what_the_measurement_gives() -> None:
    record = methods_page.read()
    text = methods_page.PAGE.read_text(encoding="utf-8")
    assert methods_page.table(record) in text, "run: python -m benchmarks.methods_page"
    assert methods_page.page(text, record) == text
    assert methods_page.COSTS.read_text(encoding="utf-8") == methods_page.costs(record)
