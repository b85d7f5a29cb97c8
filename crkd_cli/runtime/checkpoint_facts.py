"""What a checkpoint says about itself, read in milliseconds without PyTorch and the tensors."""

import pickle
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

from crkd_cli.runtime.run_folder import result_checkpoint

MAX_BYTES = 2**26  # of the description of the tensors and settings, which has kilobytes


class CheckpointFacts(NamedTuple):
    """The dataset and the training of a checkpoint."""

    dataset: str
    method: str
    step: int
    labeled: int  # patients


def describe_checkpoint(path: Path) -> str:
    """Return the file, dataset, method and date of a checkpoint or run folder.

    The facts of a file that is missing or damaged are left out: loading it reports the reason.
    """
    file = result_checkpoint(path) if path.is_dir() else path
    facts = read_facts(file)
    if facts is None:
        return str(file)
    date = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    return (
        f"{file}, trained on {facts.dataset} ({facts.labeled} labeled) with {facts.method}, "
        f"step {facts.step}, written {date}"
    )


def read_facts(file: Path) -> CheckpointFacts | None:
    """Read the facts of a checkpoint file; None if it cannot be read. Runs no code of the file."""
    try:
        with ZipFile(file) as archive:
            names = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(next(names)) as stream:
                content = stream.read(MAX_BYTES)
        tree = _InertUnpickler(content).load()
        return CheckpointFacts(
            dataset=str(tree["spec"]["name"]),
            method=str(tree["config"]["method"]),
            step=int(tree["step"]),
            labeled=len(tree["split"]["labeled"]),
        )
    except MemoryError:
        raise
    except Exception:  # damaged and foreign files fail in many ways, which all mean the same
        return None


class _Inert:
    """Stands for tensors and everything else that is not a plain type."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _InertUnpickler(pickle.Unpickler):
    """Reads plain types; no class or function that the file names is imported or called."""

    def __init__(self, content: bytes) -> None:
        from io import BytesIO

        super().__init__(BytesIO(content))

    def find_class(self, module: str, name: str) -> Any:
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        return None
