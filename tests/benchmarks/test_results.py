"""Records of runs and the page made of them, compared with figures computed by hand."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results_page
from benchmarks.common import read_json, write_json
from benchmarks.record import make_record, training_time
from crkd_cli.config import build_config, dump, read_yaml
from crkd_cli.paths import packaged_folder

ACDC = packaged_folder("configs") / "acdc.yaml"


@pytest.fixture
def keep(tmp_path: Path):
    """Return keep("name", dice=0.8, seed=1, …), which writes a record with these scores."""
    (tmp_path / "about.md").write_text("# Results\n\n<!-- results: others -->\n", encoding="utf-8")

    def keep(name: str, dice: float = 0.8, protocol: str = "strict", **changes: Any) -> None:
        record = read_json(results_page.RESULTS / "acdc-3-96px-crkd-1337-last.json")
        metrics = {"dice": [dice, 0.7, 0.9], "jaccard": [dice, 0.7, 0.9], "hd95_mm": [None] * 3}
        record["evaluation"] |= {
            "protocol": protocol,
            "scores": {"mean": metrics, "heart": metrics},
        }
        command = "crkd train --method crkd --set train.seed=1 --quiet"
        write_json(record | {"seed": 1, "command": command} | changes, tmp_path / f"{name}.json")

    return keep


def rows(page: str, start: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_committed_page_is_up_to_date_and_has_every_record():
    page = results_page.page(results_page.RESULTS)
    command = "run: python -m benchmarks.results_page"
    assert results_page.PAGE.read_text(encoding="utf-8") == page, command
    settings = results_page.read_records(results_page.RESULTS)
    assert len(settings) >= 4
    for setting, records in settings.items():
        for record in records:
            dice = record["evaluation"]["scores"]["mean"]["dice"]
            mean, low, high = (f"{100 * value:.1f}" for value in dice)
            (line,) = [line for line in page.splitlines() if f"results/{record['file']})" in line]
            if setting != "acdc 3 128x128 2500":  # the table of methods by augmentation
                assert f"| {low} to {high} | {mean} |" in line
            assert len(record["cases"]) == record["evaluation"]["cases"]


def test_a_row_has_the_figures_of_its_record(keep, tmp_path):
    keep("a", 0.8125, note="by hand", commit="abc1234", seconds=61.5, steps_per_second=None)
    page = results_page.page(tmp_path)
    scores, _, run = rows(page, "crkd")
    assert scores[:7] == ["crkd", "1", "last", "70.0 to 90.0", "81.2", "81.2", "81.2"]
    assert scores[7:] == ["–", "[file](../benchmarks/results/a.json)"]
    machine = "AMD EPYC, 2 cores; CPU (1 thread), bf16"
    assert run == ["crkd", "1", "abc1234", machine, "2.13.0+cpu", "61.5", "–"]
    assert "- crkd, seed 1: by hand." in page


def test_commands_have_the_option_names_of_today(keep, tmp_path):
    keep("a", 0.8, command="crkd train --set data.labeled=6 --set train.horizon=2.5")
    page = results_page.page(tmp_path)
    assert "--set data.labeled_batch_size=6 --set train.lr_horizon=2.5" in page


def test_seeds_are_averaged_and_share_a_command(keep, tmp_path):
    """80 and 90 have the mean 85 and the sample SD 10/√2."""
    keep("b", 0.9, seed=2, command="crkd train --method crkd --set train.seed=2 --quiet")
    keep("a", 0.8, validation={str(step): step / 100 for step in range(250, 2501, 250)})
    keep("c", 0.5, label="supervised")
    page = results_page.page(tmp_path)
    (row,) = [row for row in rows(page, "crkd") if "seeds" in row[1]]
    assert row[:5] == ["crkd", "2 seeds", "last", "± SD", "85.0 ± 7.1"]
    assert page.index("/a.json") < page.index("/b.json") < page.index("/c.json")
    assert "# crkd, seed 1, --set train.seed=2\ncrkd train --method crkd --quiet\n" in page
    assert "# supervised, seed 1\ncrkd train --method crkd --set train.seed=1 --quiet\n" in page
    # Validation at the steps that all runs share, the others being of every 125th step.
    assert [len(row) for row in rows(page, "run | seed | step 250")] == [12]
    assert "| crkd | 1 | 2.5 | 5.0 | 7.5 |" in page


def test_settings_and_protocols_have_separate_tables(keep, tmp_path):
    keep("a")
    keep("b", protocol="paper")
    keep("c", setting="la 4 112x112x80 9000")
    about = (
        "first <!-- no -->\n\n<!-- results: la 4 112x112x80 9000 -->\n\n<!-- results: others -->\n"
    )
    (tmp_path / "about.md").write_text(about, encoding="utf-8")
    write_json({}, tmp_path / "speed-cpu.json")  # of another page
    page = results_page.page(tmp_path)
    order = ["first", "/c.json", "## acdc 3 96x96 2500 steps", "**paper", "/b.json", "/a.json"]
    order = [page.index(text) for text in order]
    assert order == sorted(order)
    assert page.count("/c.json") == 1


def test_a_record_has_the_scores_of_every_case(tmp_path):
    """The evaluation and the log as the program writes them, with one organ and two cases."""
    folder = tmp_path / "run" / "evaluation-strict-test"
    folder.mkdir(parents=True)
    config = dump(build_config(read_yaml(ACDC), ACDC, ["train.steps=9", "method=supervised"]))
    dice = {"dice": {"mean": 0.7, "low": 0.6, "high": 0.8}}
    tree = {"protocol": "strict", "dataset": "acdc", "part": "test", "cases": 2, "labeled": 3}
    tree |= {"method": "supervised", "split": "s", "seed": 5, "checkpoint": "last.pth", "step": 9}
    tree |= {"truth": "0", "images": "0", "interval": "95 %", "config": config, "mean": dice}
    cases = "case,group,class,value,truth_size,predicted_size,dice\n"
    cases += "a,p,organ,1,5,6,0.612345\nb,p,organ,1,0,0,\n"
    tree |= {"format": "crkd evaluation 2", "classes": {"organ": {"value": 1, "scores": dice}}}
    tree["cases_csv"] = {"rows": 2, "sha256": hashlib.sha256(cases.encode()).hexdigest()}
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    summary = json.dumps(tree | {"sha256": digest})
    lines = ['{"step": 3, "loss": 1}', '{"step": 3, "val/dice": 0.4567}']
    log = "\n".join([*lines, '{"step": 6, "val/dice": null}', ""])
    for name, text in (("summary.json", summary), ("cases.csv", cases), ("../log.jsonl", log)):
        (folder / name).write_text(text, encoding="utf-8")
    (folder.parent / "last.pth").touch()
    write_json(make_record(folder, "crkd train"), tmp_path / "x.json")
    record = read_json(tmp_path / "x.json")
    assert (record["label"], record["seed"]) == ("supervised", 5)
    assert record["setting"] == "acdc 3 256x256 9"
    assert record["config"] == json.loads(json.dumps(config))
    assert record["validation"] == {"3": 45.7}
    assert record["evaluation"]["scores"]["organ"] == {"dice": [0.7, 0.6, 0.8]}
    assert record["cases"] == [["a", "p", [0.6123]], ["b", "p", [None]]]


def test_the_time_of_a_run_is_that_of_all_its_parts():
    """100 steps at 10 per second, 50 at 5, and, after it was resumed, 50 at 2."""
    rates = {100: 10.0, 150: 5.0, 200: 2.0}
    log = [{"step": step, "steps_per_second": rate} for step, rate in rates.items()]
    log.insert(1, {"step": 100, "val/dice": 0.5})
    assert training_time(log) == (200, 45.0)
    assert training_time([]) == (0, 0.0)


def test_the_table_of_recipes_pairs_methods_by_patient(keep, tmp_path):
    """Two patients with one and two cases; the differences are averaged by patient."""
    (tmp_path / "about.md").write_text("<!-- recipes: toy -->\n", encoding="utf-8")
    strong = {"data": {"augment": "strong"}}

    def cases(*dice: float) -> list[list[Any]]:
        names = zip(("a1", "b1", "b2"), "abb", dice, strict=True)
        return [[case, patient, [value, 0.5]] for case, patient, value in names]

    keep("1", 0.5, setting="toy", cases=cases(0.4, 0.5, 0.6), config={"data": {}})
    keep("2", 0.7, setting="toy", cases=cases(0.6, 0.7, 0.8), config={"data": {}}, seed=2)
    keep("6", 0.9, setting="toy", cases=cases(0.8, 0.9, 1.0), config={"data": {}}, seed=3)
    keep("3", 0.7, setting="toy", cases=cases(0.6, 0.7, 1.0), config=strong, seed=1)
    keep("4", 0.8, setting="toy", cases=cases(0.7, 0.8, 0.9), config=strong, seed=2)
    keep("5", 0.9, setting="toy", cases=cases(0.9, 0.9, 0.9), config=strong, label="other")
    page = results_page.page(tmp_path)
    best, row = rows(page, "other")[0], rows(page, "crkd")[0]
    assert page.index("| other |") < page.index("| crkd |")
    assert best[1:3] == ["–", "–"]
    assert best[3].startswith("90.0 (")
    assert best[5:] == ["–"]
    assert row[1].startswith("70.0 ± 20.0 (")
    files = page.replace("../benchmarks/results/", "")
    crkd = "published [1](1.json) [2](2.json) [3](6.json), strong [1](3.json) [2](4.json)"
    assert f"Records by seed: other strong [1](5.json); crkd {crkd}.\n" in files
    # Seeds 1 and 2. Patient a: 0.65 − 0.5; patient b: mean of 0.75 − 0.6 and 0.95 − 0.7.
    assert row[5].startswith("+17.5 (")
    (pair,) = rows(page, "crkd, published")
    assert pair[1] == "crkd, strong"
    # All seeds. Patient a: 0.6 − 0.65; patient b: mean of 0.7 − 0.75 and 0.8 − 0.95.
    assert pair[2].startswith("-7.5 (")


def test_methods_with_the_same_options_and_seeds_share_a_loop(keep, tmp_path):
    (tmp_path / "about.md").write_text("<!-- recipes: toy -->\n", encoding="utf-8")
    strong = "--set data.augment=strong --set data.labeled=6"  # an earlier name
    for method, seed, options in [
        ("bcp", 1, ""),
        ("bcp", 2, ""),
        ("cps", 1, ""),
        ("crkd", 1, ""),
        ("crkd", 2, ""),
        ("crkd", 1, strong),
    ]:
        command = f"crkd train --method {method} {options} --set train.seed={seed}"
        name = f"{method}{seed}{'-strong' * bool(options)}"
        keep(name, setting="toy", label=method, seed=seed, command=command, commit=name[:6])
    page = results_page.page(tmp_path)
    assert "\nCommits bcp1, bcp2, cps1, crkd1-, crkd1, crkd2; AMD EPYC, 2 cores; CPU (1" in page
    block = page.split("```")[1]
    assert [" ".join(line.split()) for line in block.strip().splitlines()] == [
        "for method in cps; do crkd train --method $method --seeds 1; done",
        "for method in bcp crkd; do crkd train --method $method --seeds 1,2; done",
        "for method in crkd; do crkd train --method $method --set data.augment=strong "
        "--set data.labeled_batch_size=6 --out runs/$method-strong --seeds 1; done",
    ]
