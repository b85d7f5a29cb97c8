"""The facts of a checkpoint, read without PyTorch: as loading it gives them, and safely."""

import os
import pickle
import zipfile

import pytest

from crkd_cli.config import Frame
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.runtime.checkpoint_facts import CheckpointFacts, describe_checkpoint, read_facts
from tests.conftest import FLAT


@pytest.fixture
def checkpoint(make_checkpoint):
    return make_checkpoint(FLAT, Frame(resize=(32, 32)), labeled=("a", "b", "c"))


def test_facts_are_those_of_the_loaded_checkpoint(checkpoint):
    loaded = load_checkpoint(checkpoint)
    assert read_facts(checkpoint) == CheckpointFacts(
        loaded.spec.name, loaded.config.method, loaded.step, len(loaded.split.labeled)
    )


def test_the_description_has_the_date_of_the_file(checkpoint):
    os.utime(checkpoint, (0, 1_700_000_000))  # 2023-11-14 or 15, depending on the time zone
    for path in (checkpoint, checkpoint.parent):
        text = describe_checkpoint(path)
        assert text.startswith(f"{checkpoint}, trained on flat (3 labeled) with supervised, step ")
        assert ", written 2023-11-1" in text


@pytest.mark.parametrize("length", [0, 100, -100])
def test_a_damaged_or_missing_file_has_no_facts(checkpoint, length):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:length])
    assert read_facts(checkpoint) is None
    assert describe_checkpoint(checkpoint) == str(checkpoint)
    assert read_facts(checkpoint.with_name("absent.pth")) is None


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_of_the_file_is_run(tmp_path):
    tree = {
        "spec": {"name": "toy"},
        "config": {"method": "crkd"},
        "step": 7,
        "split": {"labeled": ["a"]},
        "weights": Hostile(str(tmp_path / "made")),
    }
    file = tmp_path / "hostile.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hostile/data.pkl", pickle.dumps(tree))
    assert read_facts(file) == CheckpointFacts("toy", "crkd", 7, 1)
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(tree))  # as an ordinary unpickler does it
    assert (tmp_path / "made").exists()
