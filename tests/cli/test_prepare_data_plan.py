"""crkd prepare-data makes, prints and stores the plan of a user's own data."""

import json

import pytest

from crkd_cli.data.plan import Plan
from crkd_cli.data.store import Store

PLANNED = Plan(orientation="native", spacing="native", network="2D", resize=(32, 32), batch=12)


def plan_lines(err):
    return [line for line in err.splitlines() if line.startswith("plan: ")]


def test_the_plan_is_printed_and_stored(prepare_data, raw_folder, tmp_path):
    code, err = prepare_data("mine", "--source", raw_folder)
    assert code == 0
    network, resize, batch = plan_lines(err)
    assert network == "plan: network 2D (2D images)"
    assert resize == "plan: resize 32 × 32 (the median image is 20 × 30)"
    assert batch.startswith("plan: batch 12 (labeled and as many unlabeled; a step needs about ")
    assert batch.endswith("see --memory)")
    assert Store(tmp_path / "data/prepared/mine").spec.plan == PLANNED


def test_a_described_part_and_the_memory(cli, prepare_data, raw_folder, tmp_path):
    """A pixel of 64 × 64 and of 2 images per batch takes 3,924 bytes: 3 · 32 MB fit, not 4."""
    (raw_folder / "dataset.yaml").write_text("plan: {resize: [64, 64]}\n")
    options = ("--source", raw_folder, "--memory", "600MB", "--data-root", tmp_path / "data")
    result = cli("prepare-data", "mine", *options, "--check", "--json")
    tree = json.loads(result.stdout)
    assert tree["description"]["plan"] == {
        "orientation": "native",
        "spacing": "native",
        "network": "2D",
        "resize": [64, 64],
        "batch": 3,
    }
    assert list(tree["plan"]) == ["network", "resize", "batch"]
    assert tree["plan"]["resize"] == "as described"
    assert "0.6 GB of --memory" in tree["plan"]["batch"]
    assert "--memory 600MB" in result.stderr  # in the next command


@pytest.mark.parametrize(
    ("description", "options", "words"),
    [
        ("", ("--memory", "lots"), "--memory 'lots': expected a size such as 8GB or 500MB"),
        ("", ("--memory", "1MB"), "GB, but training may use 0.001 GB; give a larger --memory"),
        ("plan: {resize: [30, 30]}", (), "plan: resize: every size must be a multiple of 4"),
        ("plan: {patch: [32, 32]}", (), "plan.patch in the description is for volumes"),
        ("plan: {orientation: RAX}", (), "plan: orientation is 'RAX'; give one letter"),
        ("plan: {spacing: fine}", (), "plan.spacing is 'fine'; choose from native"),
        ("plan: {network: 3D, patch: [32, 32]}", (), "patch has 2 numbers, but network is 3D"),
        (
            "plan: {network: 3D, spacing: [1, 1]}",
            (),
            "spacing has 2 numbers, but the network is 3D",
        ),
        ("plan: {spacing: [1]}", (), "spacing has 1 number; give z, y, x, or y, x"),
        ("plan: {patch: [32, 32], resize: [32, 32]}", (), "give either patch"),
        ("plan: {pach: [32, 32]}", (), "unknown key plan.pach; did you mean plan.patch?"),
    ],
)
def test_mistakes(prepare_data, raw_folder, tmp_path, description, options, words):
    (raw_folder / "dataset.yaml").write_text(f"{description}\n")
    code, err = prepare_data("mine", "--source", raw_folder, *options)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not (tmp_path / "data/prepared/mine").exists()


def test_public_datasets_have_no_plan(prepare_data, raw_folder):
    code, err = prepare_data("la", "--source", raw_folder, "--memory", "8GB")
    assert code == 2
    assert "--memory is for your own data: la is trained as published" in err
