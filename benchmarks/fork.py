"""Copies a run that was stopped early, so that the copy goes on with other settings of its method: what they do from there on,
without the chance by which two runs part in their first steps.

crkd train … --out runs/trunk --stop-after 1000
python -m benchmarks.fork runs/trunk runs/branch methods.crkd.pixel_weight=0
crkd train … --out runs/branch --set methods.crkd.pixel_weight=0
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from crkd_cli.config import load_config
from crkd_cli.runtime import checkpoint as checkpoints


def main() -> None:
    trunk, branch, sets = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    shutil.copytree(trunk, branch)
    last = checkpoints.load_checkpoint(branch / "last.pth")
    checkpoints.save_checkpoint(
        replace(last, config=load_config(branch / "config.yaml", sets)), last.path
    )


if __name__ == "__main__":
    main()
