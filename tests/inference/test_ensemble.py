"""Ensembles: the mean of what their members predict, and which members fit together."""

import json

import msgspec
import numpy as np
import pytest
from PIL import Image

from crkd_cli.config import Frame
from crkd_cli.data.plan import Plan
from crkd_cli.data.store import ChannelInfo, numbered_classes
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.inference.ensemble import load_ensemble
from crkd_cli.inference.inferer import Inferer
from crkd_cli.runtime.run_folder import find_checkpoints
from tests.conftest import FLAT
from tests.inference.test_inferer import CPU, image, net, spec
from tests.inference.test_tta import SHAPES, Recorded

FRAME = Frame(resize=(32, 32))


@pytest.mark.parametrize("mirrored", [(), (0,)], ids=str)
@pytest.mark.parametrize(("frame", "shape"), SHAPES.values(), ids=SHAPES)
def test_probabilities_are_averaged(frame, shape, mirrored):
    x, models = image(shape), [Recorded(net(frame.dims, seed=seed)) for seed in (1, 2, 3)]

    def inferer(*chosen: Recorded) -> Inferer:
        dataset = spec(len(shape), 3)
        return Inferer(chosen, frame, dataset, CPU, window_batch=2, mirrored_axes=mirrored)

    members = [inferer(model).probabilities(x) for model in models]
    assert np.abs(members[0] - members[1]).max() > 0.01
    ensemble = inferer(*models)
    np.testing.assert_allclose(ensemble.probabilities(x), np.mean(members, axis=0), atol=2e-6)
    assert [model.most for model in models] == [1, 1, 1]


def test_predict_writes_the_mean(cli, make_checkpoint, scans, tmp_path, rng):
    Image.fromarray(rng.integers(0, 255, (33, 47)).astype(np.uint8)).save(scans / "a.png")
    files = [
        make_checkpoint(FLAT, FRAME, f"runs/x-seed{seed}/best.pth", seed=seed) for seed in (9, 10)
    ]
    runs = {
        "first": [files[0]],
        "second": [files[1]],
        "both": files,
        "all seeds": [tmp_path / "runs" / "x"],
    }
    results = {}
    for name, checkpoints in runs.items():
        out = tmp_path / name
        options = [word for file in checkpoints for word in ("--checkpoint", file)]
        result = cli("predict", scans, *options, "--out", out, "--probabilities")
        assert result.exit_code == 0, result.stderr
        with np.load(out / "probabilities" / "a.npz") as file:
            results[name] = file["probabilities"].astype(np.float64)
    lines = [line for line in result.stderr.splitlines() if line.startswith("checkpoint: ")]
    assert [line.partition(", ")[0] for line in lines] == [f"checkpoint: {file}" for file in files]
    mean = (results["first"] + results["second"]) / 2
    np.testing.assert_allclose(results["both"], mean, atol=5e-4)
    np.testing.assert_array_equal(results["all seeds"], results["both"])
    certain = np.abs(mean[1] - 0.5) > 0.001
    with Image.open(tmp_path / "both" / "a.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask)[certain], mean.argmax(0)[certain])


def test_a_run_stands_for_its_seeds_unless_it_exists(tmp_path):
    for name in ("x-seed10", "x-seed9", "x-seed9-old", "xx-seed1"):
        (tmp_path / name).mkdir()
    (tmp_path / "x-seed11").touch()  # not a run
    assert find_checkpoints(tmp_path / "x") == [tmp_path / "x-seed9", tmp_path / "x-seed10"]
    assert find_checkpoints(tmp_path / "x-seed9") == [tmp_path / "x-seed9"]
    assert find_checkpoints(tmp_path / "y") == [tmp_path / "y"]
    (tmp_path / "x").mkdir()
    assert find_checkpoints(tmp_path / "x") == [tmp_path / "x"]
    with pytest.raises(CrkdError, match="there is no checkpoint"):
        load_ensemble([tmp_path / "x-seed9", tmp_path / "x-seed10"])


CHANGES = {
    "the dataset is flat and other": {"name": "other"},
    r"the classes are background \(0\), disc \(1\) and background \(0\), ring \(1\)": {
        "classes": numbered_classes(("background", "ring"))
    },
    r"the modality of .* is gray and MR": {"channels": (ChannelInfo("MR", "minmax"),)},
    "the grid is as published and planned": {"plan": Plan("RAS", "native")},
}


@pytest.mark.parametrize(("message", "changes"), CHANGES.items())
def test_members_must_fit_together(make_checkpoint, message, changes):
    first = make_checkpoint(FLAT, FRAME, "a.pth")
    other = make_checkpoint(msgspec.structs.replace(FLAT, **changes), FRAME, "b.pth")
    with pytest.raises(UsageError, match=f"a.pth and .*b.pth cannot form an ensemble: {message};"):
        load_ensemble([first, other])


def test_members_must_see_the_same_input(make_checkpoint):
    first = make_checkpoint(FLAT, FRAME, "a.pth")
    other = make_checkpoint(FLAT, Frame(patch=(32, 16)), "b.pth")
    with pytest.raises(UsageError, match="is resized to 32 × 32 and patches of 32 × 16;"):
        load_ensemble([first, other])
    with pytest.raises(UsageError, match="given twice"):
        load_ensemble([first, other.parent / ".." / first.parent.name / first.name])


@pytest.fixture
def two_seeds(make_store, make_checkpoint):
    """The checkpoints of two runs with the same test cases."""
    store = make_store(groups=6)
    parts = {"val": ("p04",), "test": ("p00", "p01", "p02")}
    files = [
        make_checkpoint(store.spec, FRAME, f"runs/x-seed{seed}/best.pth", seed=seed, **parts)
        for seed in (1, 2)
    ]
    return store, files


@pytest.mark.slow
def test_an_ensemble_is_evaluated(cli, two_seeds, tmp_path):
    _, files = two_seeds
    root, out = tmp_path / "data", tmp_path / "ensemble"
    result = cli("evaluate", *files, "--data-root", root, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "supervised, 1 labeled, step 10, ensemble of 2" in result.stdout
    tree = json.loads((out / "summary.json").read_text())
    assert [member["checkpoint"] for member in tree["members"]] == list(map(str, files))
    assert [member["seed"] for member in tree["members"]] == [1, 2]
    assert cli("evaluate", files[1], "--data-root", root).exit_code == 0
    page = tmp_path / "page"
    result = cli("compare", out, files[1].parent, "--report", page, "--data-root", root)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "supervised × 2 − supervised" in text
    assert "the number of checkpoints is 2 (supervised × 2), 1 (supervised)" in text
    assert (page / "index.html").is_file()


def test_what_cannot_be_evaluated_as_an_ensemble(cli, two_seeds, make_checkpoint, tmp_path):
    store, files = two_seeds
    out = ("--out", tmp_path / "ensemble")
    other = make_checkpoint(store.spec, FRAME, "other.pth", seed=3, test=("p00", "p01", "p03"))
    fewer = make_checkpoint(
        store.spec, FRAME, "fewer.pth", labeled=("x", "y"), test=("p00", "p01", "p02")
    )
    for arguments, message in (
        (files, "2 checkpoints are scored as one ensemble; give --out"),
        ([*files, other, *out], "other.pth have different test cases"),
        ([*files, fewer, *out], "fewer.pth have different numbers of labeled cases"),
    ):
        result = cli("evaluate", *arguments, "--data-root", tmp_path / "data")
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.stderr.splitlines()[-1].split())


def test_the_paper_protocol_scores_single_models(cli, make_store, make_checkpoint, tmp_path):
    store = make_store("acdc", groups=3)
    published = msgspec.structs.replace(store.spec, source="acdc")
    files = [make_checkpoint(published, FRAME, f"{s}.pth", seed=s, test=("p00",)) for s in (1, 2)]
    arguments = ("--protocol", "paper", "--data-root", tmp_path / "data", "--out", tmp_path / "out")
    result = cli("evaluate", *files, *arguments)
    assert result.exit_code == 2, result.output
    assert "the published protocol scores single models" in result.stderr
