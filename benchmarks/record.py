"""Record an evaluation of a run as one file in benchmarks/results, for docs/results.md.

    python -m benchmarks.record runs/acdc-crkd-3/evaluation-last-test NAME --command "crkd train …"

A record holds the command, the commit, the machine, the settings that differ from the packaged
configuration, the validation scores during training, and the test scores of every case.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, environment, read_json, write_json
from crkd_cli.config import dump, load_config
from crkd_cli.errors import CrkdError
from crkd_cli.evaluation.results import Evaluation, read_evaluation
from crkd_cli.paths import packaged_folder
from crkd_cli.runtime.metrics_log import read_log
from crkd_cli.training.plan import flatten_keys

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluation", type=Path, help="folder that crkd evaluate wrote")
    parser.add_argument("name", help="of the file, without .json")
    parser.add_argument("--command", required=True, help="that trained the run")
    parser.add_argument("--commit", help="of the code that trained; default: of this checkout")
    parser.add_argument("--label", help="of the row on the page; default: the method")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    try:
        record = make_record(args.evaluation, args.command, args.label, args.note)
    except CrkdError as error:
        sys.exit(f"error: {error}")
    if args.commit:
        record["commit"] = args.commit
    write_json(record, RESULTS / f"{args.name}.json")


def make_record(folder: Path, command: str, label: str | None = None, note: str = "") -> Record:
    """Return the record of the evaluation in `folder`. Raises CrkdError if it cannot be read."""
    evaluation = read_evaluation(folder)
    facts = evaluation.facts
    run = evaluation.checkpoint.parent
    metrics = run / "metrics.json"
    trained = read_json(metrics) if metrics.is_file() else {}
    data = facts.config["data"]
    return {
        "label": label or facts.method,
        "method": facts.method,
        "seed": facts.seed,
        "setting": {
            "dataset": data["name"],
            "labeled": facts.labeled,
            "frame": data["frame"]["resize"] or data["frame"]["patch"],
            "steps": trained.get("steps", facts.step),
        },
        "command": command,
        **environment(),
        "device": trained.get("device"),
        "overrides": overrides(facts.config),
        "seconds": seconds(trained),
        "steps_per_second": trained.get("steps_per_second"),
        "note": note,
        "validation": validation(run),
        "evaluation": summary(folder, evaluation),
        "cases": cases(evaluation),
    }


def overrides(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of `config` that differ from the packaged ones, by their dotted keys."""
    file = packaged_folder("configs") / f"{config['data']['name']}.yaml"
    if not file.is_file():
        return {}
    packaged = flatten_keys(dump(load_config(file)))
    settings = flatten_keys(config)
    shown_apart = {"method", "train.seed"}
    changed = [key for key in settings if packaged.get(key) != settings[key]]
    return {key: settings[key] for key in changed if key not in shown_apart}


def seconds(trained: dict[str, Any]) -> float | None:
    """Return the wall time of the training, or None for a resumed run.

    The metrics.json of a resumed run knows only the time of its last part.
    """
    if not trained or trained["seconds"] * trained["steps_per_second"] <= 0.98 * trained["steps"]:
        return None
    return trained["seconds"]


def validation(run: Path) -> dict[str, float]:
    """Return the Dice (%) of the validation cases by step, from the log of the run."""
    lines = [line for line in read_log(run) if "val/dice" in line]
    return {str(line["step"]): round(100 * line["val/dice"], 1) for line in lines}


def summary(folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return what was scored and, for each class and the mean of all, [mean, low, high]."""
    tree = read_json(folder / "summary.json")
    keys = ("protocol", "part", "cases", "split", "step", "interval", "truth")
    scores = {}
    for name, metrics in {"mean": tree["mean"], **tree["classes"]}.items():
        scores[name] = {
            metric: [_rounded(value[key], 6) for key in ("mean", "low", "high")]
            for metric, value in metrics.items()
        }
    checkpoint = evaluation.checkpoint.name
    return {**{key: tree[key] for key in keys}, "checkpoint": checkpoint, "scores": scores}


def cases(evaluation: Evaluation) -> list[list[Any]]:
    """Return one row for each case: its name, its patient, and the scores of each class."""
    rows: list[list[Any]] = []
    for case, group, scores in zip(
        evaluation.cases, evaluation.groups, evaluation.scores, strict=True
    ):
        rows.append([case, group, *([_rounded(x, 4) for x in values] for values in scores)])
    return rows


def _rounded(value: float | None, digits: int) -> float | None:
    undefined = value is None or value != value
    return None if undefined else round(float(value), digits)


if __name__ == "__main__":
    main()
