"""What is carried to a GPU machine comes out there as it went in, and a step of the work runs from it, on the CPU here."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from benchmarks.gpu import pack, smoke
from benchmarks.gpu.codes import decode, encode
from benchmarks.gpu.plan import trials
from benchmarks.gpu.unpack import check, unpack
from crkd_cli.config import load_config
from crkd_cli.data.splits import Split, split_file, write_split
from crkd_cli.data.store import RECIPE, CaseInfo, DatasetSpec, Index, Store
from crkd_cli.data.synthetic import short_axis
from crkd_cli.errors import CrkdError
from crkd_cli.methods import METHODS
from crkd_cli.paths import packaged_folder

PATIENTS = 7
CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Synthetic hearts stored as ACDC is: integer gray levels scaled to [0, 1]; three patients labeled."""
    root = tmp_path / "data" / "prepared" / "acdc"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    cases = []
    for number in range(PATIENTS):
        image, label = short_axis(number)
        image = image.astype(np.float64) - image.min()
        np.save(root / "images" / f"p{number}.npy", (image / image.max()).astype(np.float32)[None])
        np.save(root / "labels" / f"p{number}.npy", label)
        cases.append(
            CaseInfo(
                id=f"p{number}",
                group=f"p{number}",
                shape=label.shape,
                spacing_mm=None,
                source=f"p{number}.h5",
                sha256="0" * 64,
                label_sha256="0" * 64,
                intensity={"min": 0.0, "max": 1.0, "mean": 0.4, "std": 0.2},
            )
        )
    spec = DatasetSpec(
        name="acdc",
        source="acdc",
        classes=CLASSES,
        channels=1,
        modality="mr",
        dims=3,
        intensity="minmax",
    )
    index = Index(recipe=RECIPE, spec=spec, cases=tuple(cases))
    (root / "index.json").write_text(json.dumps(msgspec.to_builtins(index)), encoding="utf-8")
    store = Store(root)
    train = ("p0", "p1", "p2", "p3", "p4")
    write_split(
        Split(
            dataset="acdc", name="toy-3", train=train, labeled=train[:3], val=("p5",), test=("p6",)
        ),
        split_file(store, "3"),
    )
    return store


@pytest.mark.parametrize("levels", [2, 200, 256, 257, 4000])
@pytest.mark.parametrize(("low", "step"), [(0.0, 1 / 4095), (-0.77, 0.0371)])
def test_gray_levels_come_back(levels, low, step, rng):
    codes = rng.integers(0, levels, (1, 3, 20, 30))
    codes.flat[:2] = 0, levels - 1
    image = (low + step * codes).astype(np.float32)
    data, error = encode(image)
    back = decode(data)
    assert back.dtype == np.float32
    assert error < 0.01
    np.testing.assert_allclose(back, image, atol=0.01 * step)


@pytest.mark.parametrize("shape", [(4, 5), (3, 17, 9), (1, 1), (3, 2, 4, 6)])
def test_bytes_come_back_as_they_were(shape, rng):
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    data, error = encode(array)
    np.testing.assert_array_equal(decode(data), array)
    assert error == 0.0


def test_rounding_of_single_steps_does_not_add_up():
    """At 1.0 float32 is 6e-8 apart, 3e-4 of one of 5,000 steps: a step read off one pair would miss by whole levels."""
    image = (np.arange(5001) / 5000).astype(np.float32).reshape(1, -1)
    assert abs(1 / np.diff(image.astype(np.float64)).min() - 5000) > 0.5
    assert encode(image)[1] < 0.01


def test_the_error_is_stated():
    """0, 2 and 5 become 0, 1 and 2 steps of 2.5: the middle one is off by 0.5, a fifth of a step."""
    image = np.array([[0, 2], [5, 0]], dtype=np.float32)
    data, error = encode(image)
    assert error == pytest.approx(0.2)
    np.testing.assert_allclose(decode(data), [[0, 2.5], [5, 0]])


def test_values_without_gray_levels_are_refused(rng):
    with pytest.raises(CrkdError, match="no integer gray levels"):
        encode(rng.standard_normal((8, 40, 40)).astype(np.float32))


def test_a_store_travels_in_pieces_of_any_order(store, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "PIECE", 60_000)
    kit, there = tmp_path / "kit", tmp_path / "there"
    pieces, error = pack.pack_store(store, kit)
    assert len(pieces) > 2
    assert all(piece.stat().st_size < 60_000 + tarfile.RECORDSIZE for piece in pieces)
    carried = tmp_path / "carried"
    carried.mkdir()
    with pytest.raises(CrkdError, match="no piece of acdc"):
        check(there / "acdc")
    for piece in reversed(pieces):
        shutil.move(piece, carried)
        assert unpack(carried, there) == [piece.name]
        if piece != pieces[0]:
            with pytest.raises(CrkdError, match=r"acdc is incomplete; carry acdc-1of"):
                check(there / "acdc")
        (carried / piece.name).unlink()  # what is restored need not be carried again
    check(there / "acdc")
    back = Store(there / "acdc")
    assert back.index == store.index
    assert split_file(back, "3").read_bytes() == split_file(store, "3").read_bytes()
    for case in store.cases:
        np.testing.assert_array_equal(back.label(case), store.label(case))
        image = np.asarray(store.image(case))
        level = np.diff(np.unique(image)).min()
        assert np.abs(back.image(case) - image).max() <= error * level * 1.01 < 0.5 * level
        assert back.image(case).dtype == image.dtype


def test_a_case_that_cannot_be_packed_is_named(store, tmp_path, rng):
    np.save(
        store.root / "images" / "p1.npy",
        rng.standard_normal(store.image("p1").shape).astype(np.float32),
    )
    with pytest.raises(CrkdError, match=r"p1\.npy: the values are no integer gray levels"):
        pack.pack_store(store, tmp_path / "kit")


def test_every_planned_run_has_a_valid_configuration_and_its_own_name():
    runs = [trial for several in trials().values() for trial in several]
    names = [trial.name for trial in dict.fromkeys(runs)]
    assert len(set(names)) == len(names)
    for trial in runs:
        config = load_config(
            packaged_folder("configs") / f"{trial.dataset}.yaml",
            [*trial.sets, f"method={trial.method}"],
        )
        METHODS[trial.method].Params(**config.methods.get(trial.method, {}))
        assert config.train.seed == trial.seed
    assert {trial.method for trial in runs} == set(METHODS.names())


def step(tree: Path, out: Path, *words: str) -> tuple[int, dict]:
    """Runs run.sh of the unpacked `tree`; its exit code and the JSON of its last line."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHON": sys.executable, "OUT": str(out), "CUDA_VISIBLE_DEVICES": ""}
    command = [tree / "benchmarks" / "gpu" / "run.sh", *words]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=out.parent
    )
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_step_runs_from_what_was_carried_and_goes_on_where_it_stopped(store, tmp_path):
    pack.pack_tree(tmp_path / "kit")
    pack.pack_store(store, tmp_path / "kit")
    with tarfile.open(tmp_path / "kit" / "tree.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    tree, out = tmp_path / "crkd", tmp_path / "out"
    shutil.copytree(tmp_path / "kit", tree / "build" / "gpu")

    sets = (
        "data.frame={resize: [32, 32]}",
        "data.labeled_batch_size=1",
        "data.unlabeled_batch_size=1",
        "model.widths=[4, 4, 4, 4, 4]",
    )
    toy = [word for one in (*sets, "train.precision=fp32") for word in ("--set", one)]
    code, said = step(tree, out, "acdc-3", "--steps", "3", *toy, "--budget", "0")
    assert (code, said["done"], said["unpacked"]) == (0, False, ["acdc-1of1.tar"])
    methods = ("crkd", "unimatch", "supervised")
    assert said["left"] == [f"acdc-3-{method}-1337-3steps" for method in methods]

    code, said = step(tree, out, "acdc-3", "--steps", "3", *toy)
    assert (code, said["done"], said["left"], said["failed"]) == (0, True, [], {})
    assert len(said["dice"]) == 3 * 6
    with tarfile.open(out / "results.tar.gz") as tar:
        records = {
            Path(name).stem: json.load(tar.extractfile(name))
            for name in tar.getnames()
            if name.endswith(".json")
        }
    assert set(records) == set(said["dice"])
    record = records["acdc-3-crkd-1337-3steps-best-paper-published"]
    assert record["commit"] == pack.checked_out()
    assert record["command"].startswith(
        "crkd train --dataset acdc --labeled 3 --method crkd --set train.seed=1337 "
    )
    assert record["overrides"]["train.steps"] == 3
    assert (
        record["summary"]["part"],
        record["summary"]["protocol"],
        record["summary"]["step"],
    ) == ("val+test", "paper", 3)
    assert len(record["cases"]) == 2 * 3
    assert str(tmp_path) not in json.dumps(records)

    code, said = step(
        tree, out, "acdc-3", "--steps", "3", "--stop-after", "2", "--only", "supervised", *toy
    )
    assert (code, said["done"], said["left"], said["failed"]) == (0, True, [], {})
    with tarfile.open(out / "results.tar.gz") as tar:
        early = json.load(
            tar.extractfile("records/acdc-3-supervised-1337-3steps-to2-last-strict-test.json")
        )
    assert (early["steps"], early["summary"]["step"], early["config"]["train"]["steps"]) == (
        2,
        2,
        3,
    )
    assert early["command"].endswith(" --stop-after 2")

    code, said = step(tree, out, "acdc-3", "--steps", "2", "--set", "model.name=none")
    assert (code, said["done"], list(said["failed"])) == (
        0,
        True,
        [f"acdc-3-{method}-1337-2steps" for method in methods],
    )
    assert "no network is called 'none'" in said["failed"]["acdc-3-crkd-1337-2steps"]


@pytest.mark.slow
def test_the_first_look_compares_every_method_in_2d_and_in_3d(monkeypatch):
    monkeypatch.setattr(smoke, "pick_device", lambda: torch.device("cpu"))
    said = smoke.run()
    assert [(row["data"], row["method"]) for row in said["rows"]] == [
        (d, m) for d in ("acdc", "la") for m in METHODS.names()
    ]
    assert said["done"]
    assert all(row["fp32"] > 0 for row in said["rows"])
    monkeypatch.setattr(smoke, "NEAR", 0.0)
    monkeypatch.setattr(METHODS, "names", lambda: ["crkd"])
    assert not smoke.run()["done"]  # no method is exact in bfloat16
