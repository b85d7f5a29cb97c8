"""What several tests of raw folders need."""

from pathlib import Path


def make_files(root: Path, *names: str) -> Path:
    """Create empty files below `root`: their names are all that counts."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root
