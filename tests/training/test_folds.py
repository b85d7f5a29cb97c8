"""`crkd train --folds`: the folds of a cross-validation, stopped and resumed by one command."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from crkd_cli.data.store import Store
from crkd_cli.errors import UsageError
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.runtime.run_folder import find_checkpoints, newest_checkpoint
from crkd_cli.training.plan import Request, all_folds, plan
from tests.command_server import CommandServer
from tests.training.helpers import Planner, assert_equal, set_options, weights

pytestmark = pytest.mark.parametrize("dims", [2], indirect=True)


@pytest.fixture
def line(tiny: Planner, cli: Callable[..., Result], tmp_path: Path) -> list[str]:
    """The arguments of `crkd train` for small runs on three folds, without --out and --folds."""
    tiny()
    config = tmp_path / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["train"] |= {"steps": 4, "log_every": 1, "eval_every": 4}
    config.write_text(yaml.safe_dump({**tree, "method": "supervised"}))
    root = ("--data-root", str(tmp_path / "data"))
    made = cli("make-splits", "toy", "--folds", "3", "--labeled", "2", "--quiet", *root)
    assert (made.exit_code, made.stdout, made.stderr) == (0, "", "")
    return ["train", "--dataset", "toy", "--labeled", "2", "--config", str(config), *root]


def modified(folder: Path) -> int:
    return (folder / "last.pth").stat().st_mtime_ns


@pytest.mark.slow
def test_a_subfolder_for_every_fold(
    cli: Callable[..., Result], line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*line, "--folds")
    assert result.exit_code == 0, result.stderr
    folder = Path("runs/toy-supervised-2-folds")
    folders = [folder / f"fold{number}" for number in (1, 2, 3)]
    assert sorted(folder.iterdir()) == folders
    splits = [load_checkpoint(path / "last.pth").split for path in folders]
    held_out = [group for split in splits for group in split.groups_of("fold")]
    assert sorted(held_out) == sorted(Store(tmp_path / "data" / "prepared" / "toy").groups)
    assert f"all folds are done; next: crkd evaluate {folder} --data-root" in result.stderr
    assert "fold 2 of 3: 2 labeled, 5 unlabeled, 0 validation, 0 test, 3 held out" in result.stderr
    before = [modified(path) for path in folders]
    again = cli(*line, "--folds")
    assert again.stderr.count("this run is finished (4 steps)") == 3
    one = cli(*line, "--fold", "2")
    assert f"once all folds are trained: crkd evaluate {folder}" in one.stderr
    assert [modified(path) for path in folders] == before

    assert find_checkpoints(folder) == folders
    assert newest_checkpoint(Path("runs")) == folder
    evaluated = cli("evaluate", folder, "--data-root", "data", "--quiet")
    assert evaluated.exit_code == 0, evaluated.stderr


def request(
    root: Path, out: Path | None = None, seed: int | None = None, fold: int | None = None
) -> Request:
    return Request(
        dataset="toy",
        labeled="2",
        method=None,
        config=root / "config.yaml",
        split=None,
        out=out,
        sets=[],
        data_root=root / "data",
        seed=seed,
        fold=fold,
    )


def test_folders_of_folds_and_seeds(line: list[str], tmp_path: Path) -> None:
    out = tmp_path / "a.b"
    requests = all_folds(request(tmp_path, out=out, seed=7))
    assert [plan(one).folder for one in requests] == [
        tmp_path / "a.b-seed7" / f"fold{number}" for number in (1, 2, 3)
    ]
    assert plan(request(tmp_path, fold=3)).folder == Path("runs/toy-supervised-2-folds/fold3")
    for number in (1, 2):
        for seed in (7, 8):
            (tmp_path / f"a.b-seed{seed}" / f"fold{number}").mkdir(parents=True)
    assert [path.relative_to(tmp_path) for path in find_checkpoints(out)] == [
        Path(f"a.b-seed{seed}/fold{number}") for seed in (7, 8) for number in (1, 2)
    ]


def test_folds_beside_a_run(line: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth").touch()
    with pytest.raises(UsageError, match="run holds a run without folds; give another folder"):
        plan(request(tmp_path, out=tmp_path / "run", fold=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fold", "4"], "--fold 4: 2-folds3-seed1337 has folds 1 to 3"),
        (["--fold", "0"], "--fold 0: 2-folds3-seed1337 has folds 1 to 3"),
        (["--fold", "1", "--folds"], "--folds trains all folds, --fold one of them; give one"),
        (["--fold", "1", "--budget", "1h"], "give every --fold the same number of steps"),
        (["--parallel", "2"], "add --seeds 1337,1338 or --folds, or drop it"),
        (["--folds", "--labeled", "3"], "no folds of toy with --labeled 3 exist; made: 2"),
        (["--folds", "--split", "{root}/split.yaml"], "--labeled and --split both choose"),
        (["--dataset", "toi"], "did you mean 'toy'?"),
    ],
)
def test_mistakes(
    cli: Callable[..., Result], line: list[str], tmp_path: Path, options: list[str], message: str
) -> None:
    words = [option.format(root=tmp_path) for option in options]
    result = cli(*line, "--out", tmp_path / "run", *words)
    assert result.exit_code == 2, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_new_folds_do_not_continue_old_runs(
    cli: Callable[..., Result], line: list[str], tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "run")
    assert cli(*line, *out, "--fold", "2").exit_code == 0
    root = ("--data-root", tmp_path / "data")
    made = cli("make-splits", "toy", "--folds", "3", "--labeled", "2", "--seed", "5", *root)
    assert made.exit_code == 0
    result = cli(*line, *out, "--folds")
    assert result.exit_code == 2
    assert (
        "split 2-folds3-seed1337, fold 2 of 3, now 2-folds3-seed5, fold 2 of 3 with other cases"
        in result.stderr
    )
    assert f"--out {tmp_path / 'run-2'}, or delete it" in result.stderr
    assert not (tmp_path / "run" / "fold1").exists()


@pytest.mark.slow
def test_killed_in_the_second_fold_and_resumed_is_bit_equal(
    line: list[str], crkd: CommandServer, tmp_path: Path
) -> None:
    command = [*line, "--folds", *set_options(("train.steps=30", "train.log_every=1"))]
    assert crkd.run([*command, "--out", "whole"], tmp_path).code == 0
    folder = tmp_path / "killed"
    command = [*command, *set_options(["train.save_minutes=0"]), "--out", "killed"]
    process = crkd.start(command, tmp_path)
    log = folder / "fold2" / "log.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) > 3) and not process.ended():
        time.sleep(0.01)
    process.send(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    stopped = load_checkpoint(folder / "fold2" / "last.pth").step
    assert 0 < stopped < 30
    assert not (folder / "fold3").exists()
    finished = modified(folder / "fold1")
    again = crkd.run(command, tmp_path)
    assert again.code == 0
    assert f"resuming after step {stopped}" in again.stderr
    assert modified(folder / "fold1") == finished
    for number in (1, 2, 3):
        name = f"fold{number}"
        assert_equal(weights(folder / name), weights(tmp_path / "whole" / name))


@pytest.mark.slow
def test_folds_at_once(cli: Callable[..., Result], line: list[str], tmp_path: Path) -> None:
    assert cli(*line, "--folds", "--out", tmp_path / "in-turn").exit_code == 0
    result = cli(*line, "--folds", "--parallel", "2", "--out", tmp_path / "at-once")
    assert result.exit_code == 0, result.stderr
    assert "fold 3: done: " in result.stderr
    assert result.stderr.count("crkd evaluate") == 1
    for number in (1, 2, 3):
        at_once, in_turn = (tmp_path / name / f"fold{number}" for name in ("at-once", "in-turn"))
        assert_equal(weights(at_once), weights(in_turn))


@pytest.mark.slow
def test_a_budget_is_shared_by_the_folds(
    cli: Callable[..., Result], line: list[str], tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "run", "--budget", "5s", "--config", tmp_path / "long.yaml")
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    tree["train"]["steps"] = 100_000
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(tree))
    result = cli(*line, *out, "--folds")
    assert result.exit_code == 0, result.stderr
    assert ", for each of 3 runs" in result.stderr
    steps = {
        load_checkpoint(tmp_path / "run" / f"fold{number}" / "last.pth").step
        for number in (1, 2, 3)
    }
    assert len(steps) == 1
