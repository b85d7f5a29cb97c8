"""Fixtures for every test: the command line, a seeded generator, stores of discs and balls."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from crkd_cli.data.cases import seed_of
from crkd_cli.data.foreground import sample_positions
from crkd_cli.data.splits import Fold, Split, write_split
from crkd_cli.data.store import (
    RECIPE,
    CaseInfo,
    ChannelInfo,
    DatasetSpec,
    Index,
    Store,
    ValueStatistics,
    numbered_classes,
    write_index,
)
from tests.command_server import CHECKOUT, CommandServer

FLAT = DatasetSpec(
    name="flat",
    source="folder",
    classes=numbered_classes(("background", "disc")),
    channels=(ChannelInfo(modality="gray", intensity="minmax"),),
    dims=2,
)
SHARED = CHECKOUT.parent / "shared"


def pytest_configure() -> None:
    """Let the tests find datasets in their own folders only."""
    os.environ.pop("CRKD_DATA", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest test, of the README's commands, first, so that the others run beside it.

    For pytest-xdist with --no-loadscope-reorder.
    """

    def is_longest(item: pytest.Item) -> bool:
        return "realdata" in item.keywords and item.path.name == "test_readme.py"

    items.sort(key=lambda item: not is_longest(item))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=[2, 3])
def dims(request: pytest.FixtureRequest) -> int:
    """A test with this argument runs in 2D and in 3D."""
    return int(request.param)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the output free of wrapped lines and colors, which would break up the words to find."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def cli() -> Callable[..., Result]:
    """cli("train", "--dataset", "toy") runs the real app in this process.

    The result has .exit_code, .stdout and .stderr.
    """
    from crkd_cli.cli import app

    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def crkd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    """crkd.start(["train", …], folder) starts a command in a process of its own."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    # Commands in several processes set it before they import torch, which is too late in a fork.
    environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    with CommandServer(environment, tmp_path_factory.mktemp("output") / "command") as server:
        yield server


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real cases beside the checkout; skips the test if they are absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no real cases: ../shared/data is absent")
    return SHARED / "data"


@pytest.fixture
def my_method(tmp_path: Path) -> Path:
    """my_method.py from docs/adding-a-method.md."""
    page = (CHECKOUT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    file = tmp_path / "my_method.py"
    file.write_text(code, encoding="utf-8")
    return file


StoreMaker = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path) -> StoreMaker:
    """make_store("toy", groups={"p1": 2, "p2": 1}, unlabeled={"p2"}): a store in data/prepared.

    `groups` are the patients and their numbers of cases, or the number of patients with one case.
    Every case is a bright disc (ball) of class 1 on a darker, noisy background: learnable in a few
    steps.
    """

    def make(
        name: str = "toy",
        dims: int = 2,
        groups: dict[str, int] | int = 8,
        unlabeled: set[str] | None = None,
        shape: tuple[int, ...] | None = None,
        spec: DatasetSpec | None = None,
    ) -> Store:
        if isinstance(groups, int):
            groups = {f"p{number:02d}": 1 for number in range(groups)}
        root = tmp_path / "data" / "prepared" / name
        (root / "images").mkdir(parents=True)
        (root / "labels").mkdir()
        (root / "foreground").mkdir()
        generator = np.random.default_rng(dims)
        cases = []
        for group, count in groups.items():
            for number in range(count):
                case = group if count == 1 else f"{group}_{number}"
                labeled = group not in (unlabeled or set())
                cases.append(_disc(root, case, group, shape or (32,) * dims, labeled, generator))
        spec = spec or DatasetSpec(
            name=name,
            source="folder",
            classes=numbered_classes(("background", "disc")),
            channels=(ChannelInfo(modality="gray" if dims == 2 else "MR", intensity="minmax"),),
            dims=2 if dims == 2 else 3,
        )
        write_index(root, Index(recipe=RECIPE, spec=spec, cases=tuple(cases)))
        return Store(root)

    return make


def _disc(
    root: Path,
    case: str,
    group: str,
    shape: tuple[int, ...],
    labeled: bool,
    generator: np.random.Generator,
) -> CaseInfo:
    axes = np.indices(shape, dtype=np.float32)
    center = [side * generator.uniform(0.35, 0.65) for side in shape]
    radius = min(shape) * generator.uniform(0.15, 0.3)
    distance = np.sqrt(sum((axis - middle) ** 2 for axis, middle in zip(axes, center, strict=True)))
    label = (distance <= radius).astype(np.uint8)
    noise = 0.05 * generator.standard_normal(shape)
    image = np.clip(0.3 + 0.4 * label + noise, 0, 1).astype(np.float32)
    np.save(root / "images" / f"{case}.npy", image[None])
    if labeled:
        np.save(root / "labels" / f"{case}.npy", label)
        np.save(root / "foreground" / f"{case}.npy", sample_positions(label, 2, seed_of(case)))
    return CaseInfo(
        id=case,
        group=group,
        shape=shape,
        spacing_mm=(1.0,) * len(shape),
        source=f"{case}.png",
        sha256="0" * 64,
        label_sha256=hashlib.sha256(label).hexdigest() if labeled else None,
        intensity=(ValueStatistics(min=0.0, max=1.0, mean=0.4, std=0.2),),
        class_sizes=tuple(np.bincount(label.ravel()).tolist()) if labeled else (),
    )


CheckpointMaker = Callable[..., Path]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> CheckpointMaker:
    """make_checkpoint(spec, frame, test=("p1",)): a checkpoint file of a small random network.

    The network predicts class 1 in about half of every image.
    """
    import torch

    from crkd_cli.config import Config, DataConfig, Frame, ModelConfig, TrainConfig
    from crkd_cli.data.changes import fingerprints
    from crkd_cli.runtime.build import build_method
    from crkd_cli.runtime.checkpoint import Checkpoint, save_checkpoint

    def make(
        spec: DatasetSpec,
        frame: Frame,
        path: str = "runs/toy/last.pth",
        labeled: tuple[str, ...] = ("x",),
        val: tuple[str, ...] = (),
        test: tuple[str, ...] = (),
        best: dict[str, object] | None = None,
        seed: int = 5,
        mirror: tuple[int, ...] | None = None,
        network: str = "unet",
        fold: Fold | None = None,
    ) -> Path:
        config = Config(
            data=DataConfig(
                name=spec.name,
                frame=frame,
                labeled_batch_size=1,
                unlabeled_batch_size=1,
                mirror=mirror,
            ),
            model=ModelConfig(name=network, widths=(4,) * 5),
            train=TrainConfig(steps=10, precision="fp32", seed=seed),
            method="supervised",
        )
        method = build_method(config, spec).eval()
        layers = [layer for layer in method.predictor.modules() if hasattr(layer, "bias")]
        with torch.no_grad():
            logits = method.predictor(torch.rand(4, spec.channel_count, *frame.size))
            layers[-1].bias -= logits.transpose(0, 1).flatten(1).median(1).values
        split = Split(
            dataset=spec.name,
            name="made-up",
            train=labeled,
            labeled=labeled,
            val=val,
            test=test,
            fold=fold,
        )
        store = tmp_path / "data" / "prepared" / spec.name
        checkpoint = Checkpoint(
            step=10,
            config=config,
            spec=spec,
            split=split,
            data=fingerprints(Store(store)) if store.is_dir() else {},
            weights=method.state_dict(),
            training=None,
            best=best,
        )
        file = tmp_path / path
        save_checkpoint(checkpoint, file)
        return file

    return make


EvaluationWriter = Callable[..., Path]


@pytest.fixture
def write_evaluation(tmp_path: Path) -> EvaluationWriter:
    """write_evaluation("run", scores, {case: patient}, seed=1): the files of `crkd evaluate`.

    `scores` are [cases, classes, metrics], `sizes` of the true and predicted masks [cases, classes,
    2], `values` of the classes 1, 2, … by default; further arguments go to summary.json.
    """

    def write(
        run: str,
        scores: np.ndarray,
        cases: dict[str, str],
        classes: tuple[str, ...] = ("rv", "myo"),
        metrics: tuple[str, ...] = ("dice", "hd95_mm"),
        config: dict[str, object] | None = None,
        sizes: np.ndarray | None = None,
        values: tuple[int, ...] | None = None,
        **facts: object,
    ) -> Path:
        if sizes is None:
            sizes = np.full((len(cases), len(classes), 2), 9)
        values = values or tuple(range(1, len(classes) + 1))
        defaults = {
            "format": "crkd evaluation 2",
            "protocol": "strict",
            "dataset": "acdc",
            "part": "test",
            "method": "crkd",
            "labeled": 3,
            "split": "official-3",
            "seed": 1,
            "checkpoint": f"runs/{run}/best.pth",
            "step": 10,
            "truth": "0" * 64,
            "images": "0" * 64,
        }
        tree = {
            "train": {"seed": facts.get("seed", 1), "steps": 10},
            "method": facts.get("method", "crkd"),
            "methods": {},
        }
        by_name = {name: {"value": value} for name, value in zip(classes, values, strict=True)}
        folder = tmp_path / "runs" / run / "evaluation-strict-test"
        folder.mkdir(parents=True, exist_ok=True)
        head = ["protocol", "case", "group", "class", "value", "truth_size", "predicted_size"]
        rows = [[*head, *metrics]]
        for i, (case, group) in enumerate(cases.items()):
            for k, name in enumerate(classes):
                numbers = [str(number) for number in (values[k], *sizes[i, k])]
                rows.append(["strict", case, group, name, *numbers, *map(_cell, scores[i, k])])
        text = "".join(",".join(row) + "\n" for row in rows)
        (folder / "cases.csv").write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        summary = {
            **defaults,
            **facts,
            "config": {**tree, **(config or {})},
            "classes": by_name,
            "mean": dict.fromkeys(metrics),
            "cases_csv": {"rows": len(rows) - 1, "sha256": digest},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        edit_summary(folder)
        return folder

    return write


def edit_summary(folder: Path, **changes: object) -> None:
    """Change entries of summary.json, remove those that are None, and renew its digest."""
    tree = json.loads((folder / "summary.json").read_text()) | changes | {"sha256": None}
    kept = {key: value for key, value in tree.items() if value is not None}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    (folder / "summary.json").write_text(json.dumps({**kept, "sha256": digest}))


def _cell(score: float) -> str:
    return "" if np.isnan(score) else f"{score:.6f}"


Planner = Callable[..., object]


@pytest.fixture
def tiny(tmp_path: Path, make_store: Callable[..., object], dims: int) -> Planner:
    """tiny("method=crkd", "train.steps=5", out="a"): a plan for a small run on one store."""
    make_store(groups=10, dims=dims)
    ids = tuple(f"p{number:02d}" for number in range(10))
    split = Split(
        dataset="toy", name="tiny", train=ids[:7], labeled=ids[:2], val=ids[7:8], test=ids[8:]
    )
    write_split(split, tmp_path / "split.yaml")
    config = yaml.safe_dump(tiny_config(dims))
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")

    from crkd_cli.training.plan import Request, plan

    def make(*sets: str, out: str = "run", stop_after: int | None = None) -> object:
        request = Request(
            dataset="toy",
            labeled=None,
            method=None,
            config=tmp_path / "config.yaml",
            split=tmp_path / "split.yaml",
            out=tmp_path / out,
            sets=list(sets),
            data_root=tmp_path / "data",
            stop_after=stop_after,
        )
        return plan(request)

    return make


def tiny_config(dims: int) -> dict[str, object]:
    if dims == 2:
        network, frame = "unet", {"resize": [32, 32]}
    else:
        network, frame = "vnet", {"patch": [16, 32, 16]}
    return {
        "data": {"name": "toy", "frame": frame, "labeled_batch_size": 2, "unlabeled_batch_size": 2},
        "model": {"name": network, "widths": [4, 4, 8, 8, 8]},
        "train": {
            "steps": 20,
            "log_every": 5,
            "eval_every": 10,
            "precision": "fp32",
            "device": "cpu",
        },
        "method": "crkd",
        "methods": {"crkd": {"confidence": 0.5, "contrast_samples": 16}},
    }
