"""Keeps the evaluation of a run as one JSON file: what was run, where, and every case's scores.

python benchmarks/record.py runs/acdc-crkd-3/last.pth benchmarks/results/NAME.json --command "crkd train …" --commit HASH
"""

import argparse
import csv
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from crkd_cli.config import Config, dump, load_config, parse
from crkd_cli.evaluation.results import evaluation_folder
from crkd_cli.paths import atomic_write, packaged_folder
from crkd_cli.runtime.device import describe, pick_device, pick_precision
from crkd_cli.runtime.metrics_log import read_log
from crkd_cli.training.plan import flatten_keys

PACKAGES = ("torch", "numpy", "scipy", "medpy")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True)
    parser.add_argument("--commit", required=True, help="of the code that trained")
    parser.add_argument(
        "--evaluation", help="folder in the run folder; default: the strict one of the test cases"
    )
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    run = given.checkpoint.parent
    metrics = run / "metrics.json"
    trained = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
    config: Config = parse(
        yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")),
        Config,
        str(run / "config.yaml"),
    )
    write(
        {
            **circumstances(given.command, given.commit, config, trained.get("device")),
            "seconds": seconds(trained),
            "steps_per_second": trained.get("steps_per_second"),
            "steps": trained.get(
                "steps", config.train.steps
            ),  # fewer than train.steps where the run was stopped early
            "validation": validation(run),
            "note": given.note,
            **scores(
                run / given.evaluation
                if given.evaluation
                else evaluation_folder(given.checkpoint, "strict", "test")
            ),
        },
        given.out,
    )


def circumstances(
    command: str, commit: str, config: Config, device: str | None = None
) -> dict[str, Any]:
    """What was run and where. `device`: as the run itself described it, else the one it would choose here."""
    where = pick_device(config.train.device)
    return {
        "command": command,
        "commit": commit,
        "machine": processor(),
        "device": device or describe(where, pick_precision(config.train.precision, where)),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "seed": config.train.seed,
        "config": dump(config),
        "overrides": overrides(config),
    }


def seconds(trained: dict[str, Any]) -> float | None:
    """Wall time of the training that metrics.json tells of; None for a resumed run, whose last part alone it knows."""
    whole = trained and trained["seconds"] * trained["steps_per_second"] > 0.98 * trained["steps"]
    return trained["seconds"] if whole else None


def validation(run: Path) -> dict[str, float]:
    """Dice % on the validation cases by step, from the run's log."""
    lines = read_log(run)
    return {
        str(line["step"]): round(100 * line["val/dice"], 1) for line in lines if "val/dice" in line
    }


def overrides(config: Config) -> dict[str, Any]:
    """What `config` sets apart from the packaged configuration of its data set: flat keys and their values."""
    file = packaged_folder("configs") / f"{config.data.name}.yaml"
    if not file.is_file():
        return {}
    usual, now = flatten_keys(dump(load_config(file))), flatten_keys(dump(config))
    return {key: value for key, value in now.items() if key not in usual or usual[key] != value}


def scores(folder: Path) -> dict[str, Any]:
    """The summary and the cases of the evaluation in `folder`."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    with (folder / "cases.csv").open(encoding="utf-8") as file:
        cases = [
            {key: value for key, value in row.items() if key != "protocol"}
            for row in csv.DictReader(file)
        ]
    kept = {key: value for key, value in summary.items() if key != "published"}
    kept["checkpoint"] = Path(kept["checkpoint"]).name  # which one, not where it lay
    return {"summary": kept, "cases": cases}


def write(record: dict[str, Any], out: Path) -> None:
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """The CPU's name and the number of threads torch uses on it."""
    lines = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if Path("/proc/cpuinfo").is_file()
        else []
    )
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


if __name__ == "__main__":
    main()
