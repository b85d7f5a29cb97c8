"""The speed step of the GPU work, on the CPU at a tiny size: every figure is there and fits the others."""

import json

import pytest

inputs = pytest.importorskip("benchmarks.speed.inputs")


@pytest.mark.slow
def test_the_speed_file_holds_every_target(tmp_path):
    from benchmarks.gpu.speed import measure

    sizes = inputs.Sizes(
        acdc=(3, 40, 36),
        la=(52, 40, 36),
        image=(32, 32),
        images=2,
        patch=(48, 32, 32),
        stride=(18, 18, 4),
        patches=1,
        training_patch=(48, 32, 32),
        training_steps=2,
        compiler="aot_eager",
    )
    records = [
        json.loads(json.dumps(one))
        for one in measure(inputs.synthetic(tmp_path, sizes), "a command", block=1)
    ]
    assert [len(record["rows"]) for record in records] == list(
        range(1, 10)
    )  # whatever ends it, what was measured is kept
    record = records[-1]
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == [
        "step-acdc",
        "waiting-acdc",
        "run-acdc",
        "step-la",
        "waiting-la",
        "run-la",
        "case",
        "compile-acdc",
        "compile-la",
    ]
    for name, steps in (("acdc", 20_000), ("la", 9_000)):
        step = rows[f"step-{name}"]
        assert step["ratio"] == pytest.approx(step["baseline_s"] / step["crkd_s"])
        assert rows[f"run-{name}"]["value"] == pytest.approx(steps * step["crkd_s"])
        assert 0 <= rows[f"waiting-{name}"]["value"] <= 100
    assert rows["case"]["detail"]["dice"] > 0.9
    assert record["device"] in ("cpu", "cuda")
    assert {"machine", "versions", "commit", "command", "seconds", "bound"} <= set(record)
