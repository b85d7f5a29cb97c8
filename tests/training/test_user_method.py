"""A method from a user's file, the one of docs/adding-a-method.md: it does what the page says, as the page says."""

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
from torch.nn import functional
from typer.testing import Result

from crkd_cli.errors import UsageError
from crkd_cli.methods import METHODS
from crkd_cli.runtime import checkpoint as checkpoints
from crkd_cli.runtime.build import load_method, load_predictor
from crkd_cli.training.plan import Plan
from crkd_cli.training.start import start
from tests.methods.test_contract import batch, build, calm
from tests.training.test_every_method import stop_and_resume

CHECKOUT = Path(__file__).parents[2]
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
SMALL = [
    word
    for one in (
        "train.steps=4",
        "train.eval_every=2",
        "model.widths=[4,4,4,4,4]",
        "train.device=cpu",
        "data.unlabeled_batch_size=2",
    )
    for word in ("--set", one)
]


def test_the_loss_is_what_the_page_says(my_method: Path, dims: int) -> None:
    METHODS.add(my_method)
    method, data = build("my_method", dims), batch(dims)
    calm(method)
    losses = method.losses(data, 0)
    with torch.no_grad():
        sure = method.student(data.unlabeled.weak).softmax(1).amax(1) >= 0.9
        target = (
            method.student(data.unlabeled.weak).argmax(1).where(sure, -100)
        )  # which PyTorch's function leaves out
        taught = functional.cross_entropy(method.student(data.unlabeled.strong[0]), target)
    assert 0.05 < sure.float().mean() < 0.95
    torch.testing.assert_close(losses["pseudo"].detach(), taught)
    torch.testing.assert_close(losses["kept"], sure.float().mean())
    torch.testing.assert_close(losses["total"], losses["labeled"] + losses["pseudo"])


@pytest.mark.slow
def test_the_lines_of_the_page_run(
    my_method: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, with a short run of a narrow network; then prediction, resuming, and all that without the file."""
    monkeypatch.chdir(my_method.parent)
    lines = [line.split() for line in PAGE.splitlines() if line.startswith("crkd ")]
    assert [words[1] for words in lines] == ["prepare-data", "make-splits", "train", "evaluate"]
    setting = ["--set", "methods.my_method.confidence=0.8"]
    for words in lines:
        result = cli(*words[1:], *([*SMALL, *setting] if words[1] == "train" else []))
        assert result.exit_code == 0, result.stderr
    run = Path("runs/phantom-my_method-3")
    assert (run / "my_method.py").read_bytes() == my_method.read_bytes()
    facts = json.loads((run / "evaluation-strict-test" / "summary.json").read_text())
    assert facts["method"] == "my_method"
    assert len(facts["method_sha256"]) == 64
    again = cli(*lines[2][1:], *SMALL, *setting)
    assert "this run is finished (4 steps)" in again.stderr
    longer = cli(*lines[2][1:], *SMALL, *setting, "--set", "train.steps=6")
    assert "resuming after step 4" in longer.stderr, longer.stderr

    my_method.write_text(
        my_method.read_text() + "\nimport pathlib; pathlib.Path('was-run').touch()\n"
    )
    refused = cli(*lines[2][1:], *SMALL, *setting, "--set", "train.steps=6")
    assert refused.exit_code == 2
    assert (
        "whose file has changed; runs/phantom-my_method-3/my_method.py is as it was"
        in refused.stderr
    )
    Path("was-run").unlink()  # the command line named it
    named = cli("train", "--dataset", "phantom", "--labeled", "3", "--method", "my_methods")
    assert named.exit_code == 2
    shutil.copytree("data/raw/phantom/images", "scans", ignore=lambda _, names: sorted(names)[2:])
    shutil.copy(my_method, run)  # not even from the run folder
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    for words in (lines[3][1:], ["predict", "scans"], ["compare", str(run), "--json"]):
        command = [sys.executable, "-m", "crkd_cli", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "my_method" in done.stdout
    assert len(list(Path("scans-masks").iterdir())) == 2
    assert not Path("was-run").exists()
    lost = [sys.executable, "-m", "crkd_cli", *lines[2][1:-1], "my_method"]
    assert (
        "no method is called 'my_method'"
        in subprocess.run(lost, env=environment, capture_output=True, text=True).stderr
    )


@pytest.mark.parametrize(
    ("dims", "more"), [(2, ""), (3, TEACHER)], ids=["2-student", "3-teacher"], indirect=["dims"]
)
def test_stopped_and_resumed_is_bit_equal_and_predicts_without_the_file(
    tiny: Callable[..., Plan], my_method: Path, more: str
) -> None:
    my_method.write_text(f"from crkd_cli.models.ema import Ema\n{my_method.read_text()}{more}")
    name = METHODS.add(my_method)
    whole = stop_and_resume(
        tiny,
        f"method={name}",
        "methods.my_method.confidence=0.5",
        "train.steps=8",
        "train.eval_every=4",
    )
    x = torch.rand(1, 1, *[16] * whole.config.data.frame.dims)
    model = load_method(whole).eval().predictor
    assert whole.statistics is not None
    model.load_state_dict(whole.statistics, strict=False)
    assert torch.equal(load_predictor(whole, torch.device("cpu"))(x), model(x))
    best = checkpoints.load_checkpoint(whole.path.with_name("best.pth"))
    assert best.user_method == whole.user_method
    assert whole.user_method is not None
    other = replace(
        whole,
        user_method=checkpoints.UserMethod(sha256=whole.user_method.sha256, predictor="nowhere"),
    )
    with pytest.raises(checkpoints.CrkdError, match="does not fit"):
        load_predictor(other, torch.device("cpu"))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_predictor_that_needs_the_file_is_refused_before_training(
    tiny: Callable[..., Plan], my_method: Path
) -> None:
    changed = "        self.student.more = nn.Tanh()    # no weights: only the layers tell\n"
    my_method.write_text(f"from torch import nn\n{my_method.read_text()}{INIT}{changed}")
    planned = tiny(f"method={METHODS.add(my_method)}")
    with pytest.raises(UsageError, match="does not make"):
        start(planned)
    assert not planned.folder.exists()


ASKS, LAST = "    strong_views = 1", "        return {"


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('"total": ', '"loss": ', ["losses() returned the names", '"total" among them']),
        (LAST, "        return None, {", ["losses() returned tuple"]),
        ('"total": total', '"total": total.detach()', ['"total"', "has no gradient"]),
        (LAST, f"        labeled = 0.5\n{LAST}", ['"labeled" of losses() is a float']),
        (LAST, f"        labeled = labeled.expand(2)\n{LAST}", ["of shape [2]"]),
        (LAST, f"        nowhere\n{LAST}", ["NameError: name 'nowhere' is not defined", ", line "]),
        (
            "self, batch: Batch, step: int",
            "self",
            ["TypeError", "losses() takes 1 positional argument"],
        ),
        (
            ASKS,
            "    strong_views = 'two'",
            ["strong_views = 'two'; expected a whole number, 0 to 99"],
        ),
        (ASKS, "    strong_views = 0", ["IndexError", ", line "]),
        (
            ASKS,
            f"{ASKS}\n    unlabeled_streams = 5",
            ["unlabeled_streams = 5; expected a whole number, 0 to 2"],
        ),
        (ASKS, f"{ASKS}\n    updates = 0", ["updates = 0; expected a whole number, 1 to 99"]),
        (ASKS, f"{ASKS}\n\n    def __init__(self, task, params): pass", ["AttributeError"]),
        (
            ASKS,
            f"{ASKS}\n\n    def after_step(self, step): 1 / 0",
            ["ZeroDivisionError", ", line "],
        ),
        (
            ASKS,
            f"{ASKS}\n    author_settings = {{'toy': {{'train.stepz': 3}}}}",
            ["author_settings: train.stepz=3: unknown"],
        ),
    ],
)
def test_a_mistake_in_the_class_is_one_line(
    tiny: Callable[..., Plan],
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
    files = [
        "--split",
        tmp_path / "split.yaml",
        "--out",
        tmp_path / "run",
        "--data-root",
        tmp_path / "data",
    ]
    sets = [
        "--set",
        "train.steps=2",
        "--set",
        "data.frame={resize: [32, 32]}",
        "--set",
        "data.labeled_batch_size=2",
    ]
    result = cli("train", "--dataset", "toy", "--method", my_method, *files, *sets, *SMALL[2:])
    assert result.exit_code == 2
    said = result.stderr.splitlines()[-1]
    assert said.startswith(f"error: {my_method}")
    assert all(word in said for word in words), said


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_defaults_of_settings_are_checked(tiny: Callable[..., Plan], my_method: Path) -> None:
    my_method.write_text(
        my_method.read_text().replace("confidence: Fraction = 0.9", "confidence: Fraction = 1.9")
    )
    with pytest.raises(UsageError, match=r"methods\.my_method.*confidence"):
        start(tiny(f"method={METHODS.add(my_method)}"))


@pytest.mark.slow
def test_the_contract_can_be_tested_on_it(my_method: Path) -> None:
    (line,) = [line.strip() for line in PAGE.splitlines() if "pytest" in line]
    variable, _, *words = line.split()
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        variable.partition("=")[0]: str(my_method),
    }
    command = [sys.executable, *words, "-p", "no:xdist", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
