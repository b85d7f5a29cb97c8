"""Suggestions of cases to label: the selection by hand and by definition, and who is left out."""

import json
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from scipy.stats import entropy

from crkd_cli.api import no_progress
from crkd_cli.config import Frame
from crkd_cli.data.splits import Fold
from crkd_cli.data.store import Store, write_index
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.evaluation.suggest import choose, relative_entropy, suggest, unlabeled_cases
from crkd_cli.inference.features import DeepFeatures
from crkd_cli.inference.inferer import Inferer
from crkd_cli.models.networks import NETWORKS
from crkd_cli.runtime.checkpoint import load_checkpoint
from tests.inference.test_inferer import CPU, image, net, spec

FRAME = Frame(resize=(32, 32))


def on_circle(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_one_of_two_alike_is_chosen():
    """a and b are the most uncertain, but alike; c represents d and e.

    The pool for two suggestions is a, b, c, d. Sums of similarities to a … e (0°, 1°, 90°, 80°,
    100°): a 1 + 1.00 + 0 + 0.17 − 0.17 = 2.00, b 2.02, c 0 + 0.02 + 1 + 0.98 + 0.98 = 2.99, d 0.17
    + 0.19 + 0.98 + 1 + 0.94 = 3.29. With d, the rest is b: 1.00 + 1 + 0.98 + 1 + 0.94 = 4.92.
    """
    features = on_circle(0, 1, 90, 80, 100)
    uncertainty = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    names = list("abcde")
    assert choose(uncertainty, features, names, 1) == [1]  # b, from the pool of a and b
    assert choose(uncertainty, features, names, 2) == [3, 0]


def test_each_choice_adds_most_to_the_representativeness(rng):
    features = rng.normal(size=(20, 3))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    uncertainty = rng.random(20)
    chosen = choose(uncertainty, features, [str(i) for i in range(20)], 4)

    def representativeness(cases: list[int]) -> float:
        return sum(max(features[i] @ features[j] for i in cases) for j in range(20))

    pool = sorted(range(20), key=lambda i: -uncertainty[i])[:8]
    assert len(set(chosen)) == 4
    assert set(chosen) < set(pool)
    for rank, case in enumerate(chosen):
        best = max(representativeness([*chosen[:rank], i]) for i in pool)
        assert representativeness(chosen[: rank + 1]) == pytest.approx(best)
        assert case in pool


def test_a_patient_is_chosen_once_and_ties_go_to_the_first():
    features = on_circle(0, 0, 0, 0)
    assert choose(np.ones(4), features, ["p", "p", "q", "r"], 2) == [0, 2]
    assert choose(np.array([1.0, 2.0, 1.0, 1.0]), features, ["p", "p", "q", "r"], 9) == [1, 2, 3]


def test_entropy_is_relative_to_the_predicted_foreground():
    """The floor is a tenth of the mean size, 30: 3 voxels."""
    sizes = np.array([60, 59, 1, 0])
    np.testing.assert_allclose(
        relative_entropy(np.array([30.0, 59.0, 6.0, 1.5]), sizes), [0.5, 1, 2, 0.5]
    )
    np.testing.assert_allclose(relative_entropy(np.array([3.0, 0.0]), np.zeros(2, int)), [3, 0])


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        (Frame(resize=(16, 16)), (20, 31)),
        (Frame(resize=(16, 16)), (3, 20, 31)),
        (Frame(patch=(8, 16, 16)), (11, 20, 31)),
    ],
    ids=["2D", "slices", "3D"],
)
def test_sums_over_a_case_agree_with_its_probabilities(frame, shape):
    inferer = Inferer([net(frame.dims, classes=3)], frame, spec(frame.dims, 3), CPU)
    x = image(shape)
    probabilities = inferer.probabilities(x)
    total, foreground = inferer.sum_entropy(x)
    expected = entropy(probabilities.astype(np.float64), base=3, axis=0).sum()
    assert total == pytest.approx(expected, rel=1e-5)
    assert foreground == np.count_nonzero(inferer(x))
    assert 0 < foreground < np.prod(shape)


def test_features_are_the_mean_of_the_deepest_level(dims):
    torch.manual_seed(0)
    networks = [NETWORKS[name](dims, 1, 2, (4, 4, 4, 4, 8)).eval() for name in ("unet", "vnet")]
    frame = Frame(patch=(32,) * dims)
    inferer = Inferer(networks, frame, spec(dims), CPU)
    deep_features = DeepFeatures(inferer.networks)
    x = image((32,) * dims)
    for _ in range(2):  # nothing is left of the case before
        inferer.sum_entropy(x)
        parts = []
        for network in networks:
            with torch.no_grad():
                deepest = network.encode(torch.from_numpy(x)[None])[-1][0].flatten(1).mean(1)
            parts.append(deepest / deepest.norm())
        np.testing.assert_allclose(deep_features.take(), torch.cat(parts), rtol=1e-4, atol=1e-5)


def test_a_network_without_encoder_is_refused():
    with pytest.raises(UsageError, match="no encoder"):
        DeepFeatures([net(2)])


@pytest.fixture
def partly_labeled(make_store):
    """Ten patients with two images each, of which the second has no label; p08, p09 have none."""
    store = make_store(groups={f"p{n:02d}": 2 for n in range(10)}, unlabeled={"p08", "p09"})
    cases = tuple(
        msgspec.structs.replace(case, label_sha256=None) if case.id.endswith("_1") else case
        for case in store.index.cases
    )
    write_index(store.root, msgspec.structs.replace(store.index, cases=cases))
    return Store(store.root)


def test_no_labeled_validation_or_test_case_is_suggested(partly_labeled, make_checkpoint):
    """Not even an unlabeled image of a patient who is in those parts for one of the models."""
    paths = [
        make_checkpoint(
            partly_labeled.spec, FRAME, f"{name}.pth", labeled=("p00",), val=val, test=test
        )
        for name, val, test in [("a", ("p01",), ("p02", "p03")), ("b", ("p04",), ("p02", "p05"))]
    ]
    members = [load_checkpoint(path) for path in paths]
    found = [case.id for case in unlabeled_cases(members, partly_labeled, pytest.fail)]
    assert found == ["p00_1", "p06_1", "p07_1", "p08_0", "p08_1", "p09_0", "p09_1"]
    found = [case.id for case in unlabeled_cases(members[:1], partly_labeled, pytest.fail)]
    assert found[1:4] == ["p04_1", "p05_1", "p06_1"]
    fold = msgspec.structs.replace(members[0].split, fold=Fold(1, 2, ("p05", "p08")))
    member = replace(members[0], split=fold)
    found = [case.id for case in unlabeled_cases([member], partly_labeled, pytest.fail)]
    assert found == ["p00_1", "p04_1", "p06_1", "p07_1", "p09_0", "p09_1"]


def test_if_all_have_labels_the_unused_ones_are_suggested(make_store, make_checkpoint):
    store = make_store(groups=6)
    path = make_checkpoint(store.spec, FRAME, labeled=("p00",), val=("p01",), test=("p02",))
    checkpoint = load_checkpoint(path)
    # p04 is in no part.
    split = msgspec.structs.replace(checkpoint.split, train=("p00", "p03", "p05"))
    messages: list[str] = []
    member = replace(checkpoint, split=split)
    found = [case.id for case in unlabeled_cases([member], store, messages.append)]
    assert found == ["p03", "p05"]
    assert "every case has a label" in messages[0]
    with pytest.raises(CrkdError, match="has no unlabeled case to suggest: all have a label"):
        unlabeled_cases([checkpoint], store, pytest.fail)


@pytest.fixture
def run(cli, tmp_path):
    return lambda *args: cli("suggest", *args, "--data-root", tmp_path / "data")


def test_suggestions_are_printed_with_their_files(run, make_store, make_checkpoint, dims):
    unlabeled = {"p03", "p04", "p05", "p06"}
    store = make_store(dims=dims, groups=8, unlabeled=unlabeled)
    frame = FRAME if dims == 2 else Frame(patch=(16, 16, 16))
    paths = [
        make_checkpoint(store.spec, frame, f"runs/a-seed{seed}/last.pth", test=("p06",), seed=seed)
        for seed in (1, 2)
    ]
    result = run("toy", "--checkpoint", paths[0].parent.parent / "a", "--count", "2", "--json")
    assert result.exit_code == 0, result.stderr
    tree = json.loads(result.stdout)
    assert tree["unlabeled"] == 3
    names = [case["case"] for case in tree["cases"]]
    assert len(set(names)) == 2
    assert set(names) < {"p03", "p04", "p05"}
    (left,) = {"p03", "p04", "p05"} - set(names)
    assert [name for case in tree["cases"] for name in case["represents"]] == [left]
    assert [case["file"] for case in tree["cases"]] == [f"{name}.png" for name in names]
    again = run("toy", "--checkpoint", paths[0], "--checkpoint", paths[1], "-n", "2")
    rows = [line.split("│") for line in again.stdout.splitlines() if "│" in line]
    assert [row[1].strip() for row in rows] == [f"{name}.png" for name in names]
    assert "add the labels to your folder" in again.stderr


def test_more_than_there_are(run, make_store, make_checkpoint):
    store = make_store(groups=4, unlabeled={"p03"})
    path = make_checkpoint(store.spec, FRAME, labeled=("p00",))
    result = run("toy", "--checkpoint", path, "--count", "3")
    assert result.exit_code == 0
    assert "only 1 case can be suggested, not 3" in result.stderr
    assert "p03.png" in result.stdout


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("toy", 2, "was trained on other, not on toy"),
        ("nowhere", 2, "is not a prepared dataset"),
    ],
)
def test_errors_are_one_line(run, make_store, make_checkpoint, name, code, message):
    make_store(unlabeled={"p00"})
    path = make_checkpoint(make_store("other").spec, FRAME)
    result = run(name, "--checkpoint", path)
    assert result.exit_code == code
    assert message in result.stderr.splitlines()[-1]


def test_a_new_image_is_compared_too(make_store, make_checkpoint, tmp_path):
    """A model that was trained before the image was added can suggest it."""
    path = make_checkpoint(make_store(groups=2).spec, FRAME, labeled=("p00",))
    shutil.rmtree(tmp_path / "data")
    make_store(groups=3, unlabeled={"p02"})
    messages: list[str] = []
    found = suggest("toy", [path], tmp_path / "data", 1, messages.append, no_progress, "cpu")
    assert [case.case for case in found.cases] == ["p02"]
    assert any("1 case is new" in message for message in messages)
