"""`crkd train` from the command line: its messages, its files, and one line per mistake."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml
from typer.testing import Result

from crkd_cli.data.plan import Plan
from crkd_cli.data.splits import Split, write_split
from crkd_cli.data.store import Store, numbered_classes, write_index

# The values of metrics.json that depend on when it is written.
TIMES = ("seconds", "steps_per_second", "waiting")
CONFIG = {
    "data": {
        "name": "toy",
        "frame": {"resize": [32, 32]},
        "labeled_batch_size": 2,
        "unlabeled_batch_size": 2,
    },
    "model": {"name": "unet", "widths": [4, 4, 8, 8, 8]},
    "train": {"steps": 4, "log_every": 2, "eval_every": 2, "precision": "fp32", "device": "cpu"},
    "methods": {"crkd": {"confidence": 0.5, "contrast_samples": 16}},
}


IDS = tuple(f"p{number:02d}" for number in range(6))
ARGUMENTS = ("train", "--dataset", "toy", "--config", "toy.yaml", "--split", "split.yaml")
Command = Callable[..., Result]


@pytest.fixture
def toy(tmp_path: Path, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a store of six discs, a configuration and a split."""
    make_store(groups=6)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    split = Split(
        dataset="toy", name="toy", train=IDS[:4], labeled=IDS[:2], val=IDS[4:5], test=IDS[5:]
    )
    write_split(split, tmp_path / "split.yaml")
    return tmp_path


@pytest.fixture
def prepared(toy: Path) -> Path:
    """The folder of the store."""
    return toy / "data" / "prepared" / "toy"


@pytest.fixture
def train(cli: Command, toy: Path) -> Command:
    return lambda *more: cli(*ARGUMENTS, *more)


def steps_in_metrics(run: Path) -> int:
    return int(json.loads((run / "metrics.json").read_text())["steps"])


def assert_refused(result: Result, code: int, *words: str) -> None:
    """One error line on stderr, with all `words` in it, the exit code, and no traceback."""
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line
    assert "Traceback" not in result.stderr


def test_a_run_from_start_to_finish(train: Command, toy: Path) -> None:
    result = train()
    assert result.exit_code == 0, result.stderr
    run = toy / "runs" / "toy-crkd-2"
    for file in ("config.yaml", "log.jsonl", "metrics.json", "last.pth", "best.pth"):
        assert (run / file).is_file()
    assert "2 labeled, 2 unlabeled, 1 validation, 1 test" in result.stderr
    assert "method crkd" in result.stderr
    assert "CPU" in result.stderr
    assert "crkd evaluate runs/toy-crkd-2/best.pth" in result.stderr
    assert "\x1b" not in result.stderr
    assert steps_in_metrics(run) == 4
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["train"]["momentum"] == 0.9  # a default
    again = train()
    assert again.exit_code == 0
    assert "this run is finished (4 steps)" in again.stderr
    longer = train("--set", "train.steps=6", "--quiet")
    assert (longer.exit_code, longer.stderr) == (0, "")
    assert steps_in_metrics(run) == 6


@pytest.mark.slow
def test_the_written_configuration_can_be_used_again(train: Command, toy: Path) -> None:
    assert train("--out", "a").exit_code == 0
    assert train("--out", "b", "--config", "a/config.yaml").exit_code == 0


@pytest.mark.slow
def test_a_run_that_stops_early_says_so_and_can_be_continued(train: Command, toy: Path) -> None:
    run = toy / "runs" / "toy-crkd-2"
    early = train("--stop-after", "3")
    assert early.exit_code == 0, early.stderr
    best = "runs/toy-crkd-2/best.pth"
    assert f"stopped after 3 of 4 steps: {best}; next: crkd evaluate {best}" in early.stderr
    assert steps_in_metrics(run) == 3
    again = train("--stop-after", "3")
    assert "this run has done 3 of 4 steps; rerun without --stop-after to continue" in again.stderr
    whole = train()
    assert "resuming after step 3" in whole.stderr
    assert f"done: {best}" in whole.stderr
    assert steps_in_metrics(run) == 4


@pytest.mark.slow
def test_missing_files_of_a_finished_run_are_written(train: Command, toy: Path) -> None:
    """As after a kill at its very end, which leaves a file. One log line has skipped steps only."""
    from PIL import Image

    assert train("--out", "run").exit_code == 0
    run = toy / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("metrics.json", "curves.png"):
        (run / name).unlink()
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "total": null, "kept": null}\n')
    for leftover in (".lock", ".tmp-abcdefgh-curves.png"):
        (run / leftover).touch()
    assert train("--out", "run").exit_code == 0
    assert not list(run.glob(".*"))
    rewritten = json.loads((run / "metrics.json").read_text())
    for name in TIMES:
        del metrics[name], rewritten[name]
    assert rewritten == metrics
    with Image.open(run / "curves.png") as image:
        assert min(image.size) > 300


@pytest.mark.slow
def test_own_data_without_a_configuration(cli: Command, toy: Path, prepared: Path) -> None:
    planned = Plan(orientation="native", spacing="native", network="2D", resize=(16, 16), batch=2)
    index = Store(prepared).index
    classes = numbered_classes(("background", "left eye"))
    spec = msgspec.structs.replace(index.spec, plan=planned, classes=classes)
    write_index(prepared, msgspec.structs.replace(index, spec=spec))
    keys = ("train.steps=1", "data.frame.resize=[32, 32]", "train.precision=fp32")
    small = [part for key in keys for part in ("--set", key)]
    result = cli("train", "--dataset", "toy", "--split", "split.yaml", *small)
    assert result.exit_code == 0, result.stderr
    assert "custom2d.yaml" in result.stderr
    assert "(resize 16 × 16, batch 2 + 2): resize 32 × 32, batch 2 + 2\n" in result.stderr
    assert "warning: the images in data/prepared/toy are stored with 16 × 16" in result.stderr
    assert "warning: class names state sides (left eye), which flips may exc" in result.stderr
    config = yaml.safe_load((toy / "runs/toy-crkd-2/config.yaml").read_text())
    assert config["data"]["frame"]["resize"] == [32, 32]
    assert (toy / "runs" / "toy-crkd-2" / "last.pth").is_file()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "train.lrr=1",
            ["error: --set train.lrr=1: unknown key train.lrr", "did you mean train.lr?"],
        ),
        ("trian.lr=1", ["unknown key trian", "did you mean train?"]),
        ("train.lr=fast", ["--set train.lr=fast: train.lr: expected a number, got text"]),
        ("train.precision=fp64", ["train.precision is 'fp64'", "choose from auto, bf16, fp32"]),
        (
            "train.steps=0",
            ["--set train.steps=0: train.steps: expected a whole number from 1 to 1000000000"],
        ),
        ("train.steps", ["expected key.path=value"]),
        (
            "data.frame={resize: [30, 32]}",
            ["--set data.frame={resize: [30, 32]}: data.frame", "multiple of 4"],
        ),
        (
            "data.frame.resize=[a, 32]",
            ["data.frame.resize=[a, 32]: data.frame.resize[0]: expected"],
        ),
        ("data.frame={patch: [16, 16, 16]}", ["data.frame has 3 sizes", "2 axes"]),
        (
            "data.frame={patch: [32, 16], stride: [16, 17]}",
            ["data.frame", "stride [16, 17] is larger"],
        ),
        ("model.name=unett", ["no network is called 'unett'", "did you mean 'unet'"]),
        ("methods.crkd.confidence=2", ["methods.crkd", "confidence", "from 0 to 1"]),
        ("methods.crkd.tau=0.5", ["unknown key", "tau"]),
        ("methods.crdk.confidence=0.5", ["no method is called 'crdk'", "did you mean 'crkd'"]),
        ("train.lr_schedule=step", ["train", "lr_schedule step needs lr_milestones"]),
        ("train.lr_milestones=[0.5]", ["train", "lr_milestones need lr_schedule step, not poly"]),
    ],
)
def test_bad_settings(train: Command, toy: Path, setting: str, words: list[str]) -> None:
    assert_refused(train("--set", setting), 2, *words)
    assert not (toy / "runs").exists()  # nothing half-written


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--method", "crkd", "--set", "train=3"],
            ["train: expected a section, got a whole number"],
        ),
        (
            ["--method", "supervised", "--set", "methods.supervised.x=1"],
            ["unknown key", "choose from dice"],
        ),
        (
            ["--set", "train.optimizer=adamw", "--set", "train.momentum=1"],
            ["train", "adamw needs a momentum below 1"],
        ),
        (
            ["--method", "supervized"],
            ["no method is called 'supervized'", "did you mean 'supervised'"],
        ),
        (["--method", "./absent.py"], ["cannot read absent.py", "No such file"]),
        (
            ["--method", "elsewhere/crkd.py"],
            ["elsewhere/crkd.py", "the name crkd is taken"],
        ),
        (["--method", "split.yaml"], ["no method is called 'split.yaml'"]),
        (["--stop-after", "5"], ["--stop-after 5 is beyond the run's last step; train.steps = 4"]),
        (["--device", "cuda:99"], ["cuda:99", "does not exist"]),
        (["--device", "toaster"], ["train.device: expected auto, cpu, cuda or cuda:N"]),
        (["--config", "absent.yaml"], ["absent.yaml"]),
        (["--split", "absent.yaml"], ["absent.yaml"]),
    ],
)
def test_bad_options(train: Command, toy: Path, options: list[str], words: list[str]) -> None:
    assert_refused(train(*options), 2, *words)
    assert not (toy / "runs").exists()


@pytest.mark.parametrize(
    ("option", "error"),
    [
        (
            ["--set", "train.step=5"],
            "--set train.step=5: unknown key train.step; did you mean train.steps?",
        ),
        (
            ["--method", "supervized"],
            "no method is called 'supervized'; did you mean 'supervised'?",
        ),
    ],
)
def test_a_misspelling_is_reported_before_torch_is_loaded(option: list[str], error: str) -> None:
    program = f"""
import sys
sys.argv = ["crkd", "train", "--dataset", "toy", *{option!r}]
from crkd_cli.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "2 False\n"
    assert result.stderr == f"error: {error}\n"


def test_no_such_dataset(cli: Command, toy: Path) -> None:
    assert_refused(cli("train"), 2, "--dataset")
    assert_refused(
        cli("train", "--dataset", "toi", "--config", "toy.yaml"), 2, "toi", "did you mean 'toy'"
    )
    assert_refused(cli("train", "--dataset", "acdc"), 2, "crkd prepare-data acdc")
    assert_refused(
        cli("train", "--dataset", "own", "--data-root", "nowhere"),
        2,
        "crkd prepare-data own --source FOLDER, or give the right --data-root "
        "(nowhere/prepared does not exist)",
    )
    assert_refused(
        cli("train", "--dataset", "toy", "--config", "toy.yaml", "--labeled", "3"),
        2,
        "crkd make-splits toy --labeled 3",
    )


def test_bad_yaml(train: Command, toy: Path) -> None:
    (toy / "toy.yaml").write_text("data: [1, 2", encoding="utf-8")
    assert_refused(train(), 2, "toy.yaml", "not valid YAML")
    (toy / "toy.yaml").write_text("just words", encoding="utf-8")
    assert_refused(train(), 2, "toy.yaml", "not a configuration")
    (toy / "toy.yaml").write_text("data: 3", encoding="utf-8")
    assert_refused(train(), 2, "toy.yaml: data is 3, not a section")


def test_a_split_of_another_dataset(train: Command, toy: Path) -> None:
    file = toy / "split.yaml"
    file.write_text(file.read_text().replace("dataset: toy", "dataset: la"))
    assert_refused(train(), 2, "split.yaml is a split of la, not of toy")


def test_one_value_is_too_little_for_batch_norm(train: Command) -> None:
    small = ("--set", "data.frame={resize: [16, 16]}", "--set", "data.labeled_batch_size=1")
    assert_refused(
        train(*small, "--method", "supervised"),
        2,
        "batch norm",
        "data.frame is 16",
        "--set data.labeled_batch_size=2",
    )


def test_no_unlabeled_cases(train: Command, toy: Path) -> None:
    split = Split(dataset="toy", name="all", train=IDS[:4], labeled=IDS[:4], test=IDS[4:])
    write_split(split, toy / "split.yaml")
    assert_refused(train(), 1, "no unlabeled training case", "--method supervised")
    assert train("--method", "supervised").exit_code == 0


def test_a_damaged_index(train: Command, prepared: Path) -> None:
    index = prepared / "index.json"
    tree = json.loads(index.read_text())
    index.write_text(json.dumps({**tree, "recipe": 0}))
    assert_refused(train(), 1, "recipe 0", "crkd prepare-data toy")
    index.write_text("{")
    assert_refused(train(), 1, "index.json", "crkd prepare-data toy")


def test_a_damaged_image(train: Command, prepared: Path) -> None:
    image = prepared / "images" / "p00.npy"
    image.write_bytes(image.read_bytes()[:200])
    assert_refused(train(), 1, "p00.npy", "crkd prepare-data toy")


def test_a_missing_label(train: Command, prepared: Path) -> None:
    """Of a labeled case; those of unlabeled cases are never opened."""
    (prepared / "labels" / "p01.npy").unlink()
    assert_refused(train(), 1, "p01.npy", "crkd prepare-data toy")


def test_other_labels_than_the_run_was_started_with(train: Command, prepared: Path) -> None:
    assert train("--out", "run").exit_code == 0
    index = Store(prepared).index
    first = msgspec.structs.replace(index.cases[0], label_sha256="1" * 64)
    write_index(prepared, msgspec.structs.replace(index, cases=(first, *index.cases[1:])))
    resumed = train("--out", "run", "--set", "train.steps=6")
    reason = "data/prepared/toy has changed: 1 label differs"
    assert_refused(resumed, 2, reason, "give another folder with --out run-2")


def test_a_run_folder_that_cannot_be_written(train: Command, toy: Path) -> None:
    (toy / "file").write_text("")
    assert_refused(train("--out", "file/run"), 1, "file/run")


def test_a_foreign_checkpoint_in_the_run_folder(train: Command, toy: Path) -> None:
    (toy / "run").mkdir()
    (toy / "run" / "last.pth").write_text("not a checkpoint")
    assert_refused(train("--out", "run"), 1, "run/last.pth", "is not a checkpoint")
    assert (toy / "run" / "last.pth").read_text() == "not a checkpoint"


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(train: Command, toy: Path) -> None:
    """Simulated by a limit on the file size, which makes the same write fail."""
    assert train("--out", "run").exit_code == 0
    before = (toy / "run" / "last.pth").read_bytes()
    # Between the sizes of best.pth, which is written first, and last.pth.
    limit = (len(before) + (toy / "run" / "best.pth").stat().st_size) // 2
    options = ("--out", "run", "--set", "train.steps=6")
    done = subprocess.run(
        [sys.executable, "-m", "crkd_cli", *ARGUMENTS, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "error: cannot write run/last.pth" in done.stderr
    assert "Traceback" not in done.stderr
    assert (toy / "run" / "last.pth").read_bytes() == before
    assert not list((toy / "run").glob(".tmp-*"))


def test_verbose_shows_the_traceback(train: Command, toy: Path) -> None:
    assert "Traceback" in train("--method", "supervized", "-v").stderr
    (toy / "mine.py").write_text("def f():\n    1 / 0\nf()\n")
    assert_refused(
        train("--method", "mine.py"),
        2,
        "mine.py cannot be loaded (ZeroDivisionError: division by zero, line 2)",
    )
    assert 'mine.py", line 3, in <module>' in train("--method", "mine.py", "-v").stderr
