"""Copies a run that was stopped early, so that the copy goes on with other settings of its method: what they do from there on,
without the chance by which two runs part in their first steps.

crkd train … --out runs/trunk --stop-after 1000
python -m benchmarks.fork runs/trunk runs/branch methods.crkd.pixel=0
crkd train … --out runs/branch --set methods.crkd.pixel=0
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from crkd_cli.config import load
from crkd_cli.engine import checkpoint as checkpoints


def main() -> None:
    trunk, branch, sets = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    shutil.copytree(trunk, branch)
    last = checkpoints.load(branch / "last.pth")
    checkpoints.save(replace(last, config=load(branch / "config.yaml", sets)), last.path)


if __name__ == "__main__":
    main()
