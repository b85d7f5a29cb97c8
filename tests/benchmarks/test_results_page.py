"""The results page: what stands in docs/ is what the records give, and the records give what a hand would write."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.record import overrides, seconds
from benchmarks.results_page import OTHERS, PAGE, RESULTS, page
from crkd_cli.config import load_config
from crkd_cli.paths import packaged_folder


def test_the_page_is_made_from_the_records():
    assert PAGE.read_text(encoding="utf-8") == page(RESULTS), (
        "run: python benchmarks/results_page.py"
    )


def test_every_record_is_on_the_page():
    text = page(RESULTS)
    for file in RESULTS.glob("*.json"):
        assert f"results/{file.name})" in text or file.name.startswith(OTHERS), file.name


@pytest.fixture
def keep(tmp_path: Path):
    """keep("name", dice=0.8, seed=1, …): a record of an ACDC run with 3 labeled patients among those of tmp_path."""

    def keep(name: str, dice: float | None = 0.8, **given: Any) -> None:
        sets = given.pop("overrides", {})
        steps, frame = sets.get("train.steps", 20000), sets.get("data.frame.resize", [256, 256])
        score = {"mean": dice, "low": 0.7, "high": 0.9} if dice else None
        record = {
            "command": f"crkd train --set train.seed={given.get('seed', 1)}",
            "commit": "abc1234",
            "machine": "a CPU",
            "device": "a GPU",
            "versions": {"torch": "2.11"},
            "seed": given.pop("seed", 1),
            "seconds": 61.5,
            "steps_per_second": None,
            "config": {
                "data": {"name": "acdc", "frame": {"resize": frame, "patch": None}},
                "train": {"steps": steps},
                "method": given.pop("method", "crkd"),
            },
            "overrides": sets,
            "summary": {"dataset": "acdc", "labeled": 3},
        }
        if dice:
            far = {"mean": None, "low": None, "high": None}
            metrics = {"dice": score, "jaccard": score, "hd95_mm": far}
            record["summary"] |= {
                "protocol": given.pop("protocol", "strict"),
                "part": "test",
                "cases": 40,
                "interval": "95 %",
                "step": steps,
                "checkpoint": f"runs/x/{given.pop('checkpoint', 'last')}.pth",
                "classes": {"heart": metrics},
                "mean": metrics,
            }
        (tmp_path / f"{name}.json").write_text(json.dumps(record | given), encoding="utf-8")

    (tmp_path / "about.md").write_text("# Results\n\n<!-- results: others -->\n", encoding="utf-8")
    return keep


def cells(text: str, file: str) -> list[str]:
    """The cells of the one row that ends with a link to `file`."""
    (line,) = [
        line
        for line in text.splitlines()
        if f"results/{file}.json)" in line and line.startswith("|")
    ]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_says_what_the_record_says(keep, tmp_path):
    keep("a", 0.8125, seed=7, checkpoint="best")
    row = cells(page(tmp_path), "a")
    assert row[:7] == ["crkd", "7", "best on val", "20,000", "**81.2**", "70.0 to 90.0", "81.2"]
    assert row[8] == "–"  # an undefined distance
    assert "| crkd | 7 | abc1234 | a CPU | a GPU | 2.11 | 61.5 | – |" in page(tmp_path)


def test_seeds_of_one_method_are_summed_up(keep, tmp_path):
    """80 and 90: mean 85, sample SD 10/√2."""
    keep("b", 0.9, seed=2)
    keep("a", 0.8, seed=1)
    keep("c", 0.5, seed=1, method="supervised")
    text = page(tmp_path)
    assert "| crkd | 2 seeds | last |  | **85.0 ± 7.1** | SD over seeds |" in text
    assert text.index("/a.json") < text.index("/b.json") < text.index("/c.json")
    assert "supervised | 2 seeds" not in text


def test_runs_of_another_size_or_protocol_share_no_table(keep, tmp_path):
    keep("full")
    keep("small", overrides={"data.frame.resize": [96, 96], "train.steps": 2500})
    keep("paper", protocol="paper")
    text = page(tmp_path)
    assert text.index("## acdc, 3 labeled, 256 × 256, 20,000 steps") < text.index("/full.json")
    assert text.index("## acdc, 3 labeled, 96 × 96, 2,500 steps") < text.index("/small.json")
    assert (
        text.index("**paper protocol, test: 40 cases**")
        < text.index("/paper.json")
        < text.index("**strict protocol")
    )


@pytest.mark.parametrize(
    ("overrides", "published"),
    [
        ({}, True),
        (
            {
                "train.seed": 2,
                "method": "crkd",
                "methods.crkd.pixel_weight": 0,
                "train.eval_every": 100,
            },
            True,
        ),
        ({"train.lr": 0.1}, False),
        ({"data.frame.resize": [96, 96]}, False),
        ({"train.steps": 100}, False),
    ],
)
def test_published_rows_stand_beside_the_published_setting_only(
    keep, tmp_path, overrides, published
):
    keep("a", overrides=overrides)
    assert (
        "| CRKD | paper | CRKD README (val + test) | 85.69 | 75.88 | 2.97 | 0.85 |"
        in page(tmp_path)
    ) == published


def test_a_label_says_what_one_run_alone_sets(keep, tmp_path):
    keep(
        "a",
        overrides={
            "data.labeled_batch_size": 8,
            "methods.crkd.pixel_weight": 0,
            "methods.crkd.entropy_weight": 0.0,
            "methods.crkd.rampup": 0.1,
        },
    )
    keep("b", overrides={"data.labeled_batch_size": 8, "train.lr": 0.1, "methods.fixmatch.x": 1})
    keep(
        "c", method="bcp", overrides={"data.labeled_batch_size": 8, "train.lr_schedule": "constant"}
    )  # as its authors
    text = page(tmp_path)
    assert cells(text, "a")[0] == "crkd without pixel, entropy; ramp 0.1"
    assert cells(text, "b")[0] == "crkd; train.lr 0.1"
    assert cells(text, "c")[0] == "bcp"
    assert "Set apart from `configs/acdc.yaml`: data.labeled 8." in text


def test_a_label_names_settings_of_one_value_together(keep, tmp_path):
    pixel, others = (
        {"methods.crkd.pixel_weight": 0.1},
        {"train.lr": 0.2, "methods.crkd.entropy_weight": 0.1, "methods.crkd.feature_weight": 0},
    )
    keep("a", overrides=pixel | others)
    keep("b", overrides={})
    assert cells(page(tmp_path), "a")[0] == "crkd without feature; pixel, entropy 0.1; train.lr 0.2"


def test_all_that_the_runs_of_a_group_set_apart_is_told(keep, tmp_path):
    """Of the published setting length and validation differ; seed and method stand in the tables."""
    apart = {
        "data.frame.resize": [96, 96],
        "train.steps": 2500,
        "train.eval_every": 250,
        "methods.crkd.pixel_weight": 0,
    }
    keep("a", overrides={**apart, "train.seed": 2})
    keep("b", overrides={**apart, "train.lr": 0.1})
    told = "Set apart from `configs/acdc.yaml`: data.frame.resize [96, 96], train.steps 2500, train.eval_every 250.\n"
    assert told in page(tmp_path)


def test_failures_and_notes_are_kept(keep, tmp_path):
    keep("good", note="by hand")
    keep("bad", None, seed=3, failure="the loss was not finite")
    text = page(tmp_path)
    assert (
        "- crkd, seed 3: the loss was not finite ([bad.json](../benchmarks/results/bad.json))"
        in text
    )
    assert "- by hand" in text


def test_speed_files_are_another_pages(keep, tmp_path):
    (tmp_path / "speed-cpu.json").write_text("{}", encoding="utf-8")
    assert page(tmp_path) == "# Results\n"


def test_text_keeps_its_place(keep, tmp_path):
    keep("a")
    places = (
        f"<!-- results: {key} -->"
        for key in ("acdc 3 256x256 20000", "la 4 112x112x80 9000", "others")
    )
    about = "before\n\n{}\n\nafter\n\n{}\n\n{}\n".format(*places)
    (tmp_path / "about.md").write_text(about, encoding="utf-8")
    out = page(tmp_path)
    assert (
        out.index("before")
        < out.index("/a.json")
        < out.index("after")
        < out.index("No run of this setting is recorded.")
    )
    assert out.count("/a.json") == 1


def test_a_record_without_its_configuration_is_named(tmp_path):
    (tmp_path / "old.json").write_text('{"summary": {}}', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"old\.json does not hold the run's configuration"):
        page(tmp_path)


def test_a_record_states_what_the_run_set_apart():
    sets = [
        "data.frame={resize: [96, 96]}",
        "train.steps=20000",
        "methods.crkd.pixel_weight=0",
        "train.seed=7",
    ]
    found = overrides(load_config(packaged_folder("configs") / "acdc.yaml", sets))
    assert found == {"data.frame.resize": (96, 96), "methods.crkd.pixel_weight": 0, "train.seed": 7}


def test_the_seconds_of_a_resumed_run_are_not_those_of_its_last_part():
    assert seconds({"steps": 1000, "seconds": 50.0, "steps_per_second": 20.0}) == 50.0
    assert seconds({"steps": 1000, "seconds": 10.0, "steps_per_second": 20.0}) is None
    assert seconds({}) is None


def test_validation_over_training_is_shown_at_ten_steps_at_most(keep, tmp_path):
    keep("a", validation={str(step): step / 10 for step in range(125, 2501, 125)})
    keep(
        "b",
        method="supervised",
        validation={str(step): step / 20 for step in range(250, 2501, 250)},
    )
    text = page(tmp_path)
    assert (
        "| run | seed | 250 | 500 | 750 | 1,000 | 1,250 | 1,500 | 1,750 | 2,000 | 2,250 | 2,500 |"
        in text
    )
    assert "| crkd | 1 | 25.0 | 50.0 | 75.0 |" in text
    assert "| supervised | 1 | 12.5 | 25.0 |" in text


def test_a_run_that_was_stopped_early_stands_with_those_of_as_many_steps(keep, tmp_path):
    """Its label tells for how long it was planned, if the packaged configuration does not."""
    keep("a", overrides={"train.steps": 30000}, steps=1030, method="unimatch")
    keep("b", overrides={}, steps=1030)
    text = page(tmp_path)
    assert "## acdc, 3 labeled, 256 × 256, 1,030 steps" in text
    assert cells(text, "a")[0] == "unimatch; schedule of 30,000 steps"
    assert cells(text, "b")[0] == "crkd; schedule of 20,000 steps"
