"""A method from a user's file, that of docs/adding-a-method.md: it does what the page says."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from typer.testing import Result

from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.methods import METHODS
from crkd_cli.runtime.build import load_method, load_predictor
from crkd_cli.runtime.checkpoint import UserMethod, load_checkpoint
from crkd_cli.training.start import start
from tests.methods.test_contract import batch, build, make_deterministic
from tests.training.helpers import CHECKOUT, CPU, Planner, set_options
from tests.training.test_every_method import stop_and_resume

PAGE = (CHECKOUT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
INIT = """
    def __init__(self, task, params):
        super().__init__(task, params)
"""
TEACHER = f"""{INIT}
        self.teacher = Ema(self.student, 0.9, dropout=False)

    def after_step(self, step):
        self.teacher.update(self.student, step)

    @property
    def predictor(self):
        return self.teacher.network
"""
SMALL = (
    "train.eval_every=2",
    "model.widths=[4,4,4,4,4]",
    "train.device=cpu",
    "data.unlabeled_batch_size=2",
)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def run_crkd(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `crkd` in a process that has not loaded the file."""
    command = [sys.executable, "-m", "crkd_cli", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


def test_the_loss_is_what_the_page_says(my_method: Path, dims: int) -> None:
    METHODS.add(my_method)
    method, data = build("my_method", dims), batch(dims)
    make_deterministic(method)
    losses = method.losses(data, 0)
    with torch.no_grad():
        weak = method.student(data.unlabeled.weak)
        confident = weak.softmax(1).amax(1) >= 0.9
        target = weak.argmax(1).where(confident, -100)  # which PyTorch's function ignores
        pseudo = F.cross_entropy(method.student(data.unlabeled.strong[0]), target)
    assert 0.05 < confident.float().mean() < 0.95
    torch.testing.assert_close(losses["pseudo"].detach(), pseudo)
    torch.testing.assert_close(losses["kept"], confident.float().mean())
    torch.testing.assert_close(losses["total"], losses["labeled"] + losses["pseudo"])


@pytest.mark.slow
def test_the_commands_of_the_page_run(
    my_method: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, with a short run of a narrow network; then resuming, and without the file."""
    monkeypatch.chdir(my_method.parent)
    commands = [line.split()[1:] for line in PAGE.splitlines() if line.startswith("crkd ")]
    _, _, train, evaluate = commands
    assert [words[0] for words in commands] == ["prepare-data", "make-splits", "train", "evaluate"]
    train += set_options((*SMALL, "train.steps=4", "methods.my_method.confidence=0.8"))
    for words in commands:
        result = cli(*words)
        assert result.exit_code == 0, result.stderr
    run = Path("runs/phantom-my_method-3")
    assert (run / "my_method.py").read_bytes() == my_method.read_bytes()
    summary = json.loads((run / "evaluation-strict-test" / "summary.json").read_text())
    assert summary["method"] == "my_method"
    assert len(summary["method_sha256"]) == 64

    assert "this run is finished (4 steps)" in cli(*train).stderr
    longer = cli(*train, "--set", "train.steps=6")
    assert "resuming after step 4" in longer.stderr, longer.stderr

    marker = Path("was-run")
    my_method.write_text(
        f"{my_method.read_text()}\nimport pathlib; pathlib.Path('{marker}').touch()"
    )
    changed = cli(*train, "--set", "train.steps=6")
    assert changed.exit_code == 2
    reason = "whose file has changed; runs/phantom-my_method-3/my_method.py is as it was"
    assert reason in changed.stderr
    marker.unlink()  # the command named the file
    by_name = cli("train", "--dataset", "phantom", "--labeled", "3", "--method", "my_methods")
    assert by_name.exit_code == 2

    shutil.copytree("data/raw/phantom/images", "scans", ignore=lambda _, names: sorted(names)[2:])
    shutil.copy(my_method, run)  # nothing runs this copy either
    for words in (evaluate, ["predict", "scans"], ["compare", str(run), "--json"]):
        done = run_crkd(*words)
        assert done.returncode == 0, done.stderr
    assert "my_method" in done.stdout
    assert len(list(Path("scans-masks").glob("*.nii"))) == 2
    assert not marker.exists()
    named = train[: train.index("--method") + 1]
    assert "no method is called 'my_method'" in run_crkd(*named, "my_method").stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "more"), [(2, ""), (3, TEACHER)], ids=["2-student", "3-teacher"], indirect=["dims"]
)
def test_stopped_and_resumed_is_bit_equal_and_predicts_without_the_file(
    tiny: Planner, my_method: Path, more: str
) -> None:
    my_method.write_text(f"from crkd_cli.models.ema import Ema\n{my_method.read_text()}{more}")
    name = METHODS.add(my_method)
    settings = ("methods.my_method.confidence=0.5", "train.steps=8", "train.eval_every=4")
    last = stop_and_resume(tiny, f"method={name}", *settings)
    x = torch.rand(1, 1, *[16] * last.config.data.frame.dims)
    model = load_method(last).eval().predictor
    assert last.statistics is not None
    model.load_state_dict(last.statistics, strict=False)
    assert torch.equal(load_predictor(last, CPU)(x), model(x))
    best = load_checkpoint(last.path.with_name("best.pth"))
    assert best.user_method == last.user_method
    assert last.user_method is not None
    wrong = UserMethod(sha256=last.user_method.sha256, predictor="nowhere")
    with pytest.raises(CrkdError, match="does not fit"):
        load_predictor(replace(last, user_method=wrong), CPU)


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_predictor_that_needs_the_file_is_refused_before_training(
    tiny: Planner, my_method: Path
) -> None:
    changed = "        self.student.more = nn.Tanh()    # has no weights: only the layers differ\n"
    my_method.write_text(f"from torch import nn\n{my_method.read_text()}{INIT}{changed}")
    planned = tiny(f"method={METHODS.add(my_method)}")
    with pytest.raises(UsageError, match="does not make"):
        start(planned)
    assert not planned.folder.exists()


VIEWS, RETURN = "    strong_views = 1", "        return {"


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('"total": ', '"loss": ', ["losses() returned the names", '"total" among them']),
        (RETURN, "        return None, {", ["losses() returned tuple"]),
        ('"total": total', '"total": total.detach()', ['"total"', "has no gradient"]),
        (RETURN, f"        labeled = 0.5\n{RETURN}", ['"labeled" of losses() is a float']),
        (RETURN, f"        labeled = labeled.expand(2)\n{RETURN}", ["of shape [2]"]),
        (
            RETURN,
            f"        nowhere\n{RETURN}",
            ["NameError: name 'nowhere' is not defined", ", line "],
        ),
        (
            "self, batch: Batch, step: Tensor",
            "self",
            ["TypeError", "losses() takes 1 positional argument"],
        ),
        (
            VIEWS,
            "    strong_views = 'two'",
            ["strong_views = 'two'; expected a whole number, 0 to 99"],
        ),
        (VIEWS, "    strong_views = 0", ["IndexError", ", line "]),
        (
            VIEWS,
            f"{VIEWS}\n    unlabeled_streams = 5",
            ["unlabeled_streams = 5; expected a whole number, 0 to 2"],
        ),
        (VIEWS, f"{VIEWS}\n    updates = 0", ["updates = 0; expected a whole number, 1 to 99"]),
        (VIEWS, f"{VIEWS}\n\n    def __init__(self, task, params): pass", ["AttributeError"]),
        (
            VIEWS,
            f"{VIEWS}\n\n    def after_step(self, step): 1 / 0",
            ["ZeroDivisionError", ", line "],
        ),
        (
            VIEWS,
            f"{VIEWS}\n    author_settings = {{'toy': {{'train.stepz': 3}}}}",
            ["author_settings: train.stepz=3: unknown"],
        ),
    ],
)
def test_a_mistake_in_the_class_is_one_line(
    tiny: Planner,
    my_method: Path,
    tmp_path: Path,
    cli: Callable[..., Result],
    right: str,
    wrong: str,
    words: list[str],
) -> None:
    tiny()
    text = my_method.read_text()
    assert text.count(right) == 1
    my_method.write_text(text.replace(right, wrong))
    folders = ("--out", tmp_path / "run", "--data-root", tmp_path / "data")
    options = ("--dataset", "toy", "--split", tmp_path / "split.yaml", *folders)
    short = ("train.steps=2", "data.frame={resize: [32, 32]}", "data.labeled_batch_size=2")
    result = cli("train", "--method", my_method, *options, *set_options((*short, *SMALL)))
    assert result.exit_code == 2
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"error: {my_method}")
    assert all(word in error for word in words), error


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_defaults_of_settings_are_checked(tiny: Planner, my_method: Path) -> None:
    code = my_method.read_text()
    my_method.write_text(code.replace("confidence: Fraction = 0.9", "confidence: Fraction = 1.9"))
    with pytest.raises(UsageError, match=r"methods\.my_method.*confidence"):
        start(tiny(f"method={METHODS.add(my_method)}"))


@pytest.mark.slow
def test_the_contract_can_be_tested_on_it(my_method: Path) -> None:
    (line,) = [line.strip() for line in PAGE.splitlines() if "pytest" in line]
    variable, _, *words = line.split()
    environment = {**ENVIRONMENT, variable.partition("=")[0]: str(my_method)}
    command = [sys.executable, *words, "-p", "no:xdist", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
