"""Record an evaluation of a run as one file in benchmarks/results, for docs/results.md.

    python -m benchmarks.record RUN/evaluation-strict-test NAME --command "crkd train …"

A record holds the command, the commit (of this checkout, or $CRKD_COMMIT), the machine, the
configuration, the validation scores during training, and the test scores of every case.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, environment, read_json, write_json
from crkd_cli.errors import CrkdError
from crkd_cli.evaluation.results import Evaluation, read_evaluation
from crkd_cli.runtime.metrics_log import read_log

SUMMARY = ("protocol", "part", "cases", "split", "step", "interval", "truth")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluation", type=Path, help="folder that crkd evaluate wrote")
    parser.add_argument("name", help="of the file, without .json")
    parser.add_argument("--command", required=True, help="that trained the run")
    parser.add_argument("--label", help="of the row on the page; default: the method")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    try:
        record = make_record(args.evaluation, args.command, args.label, args.note)
    except CrkdError as error:
        sys.exit(f"error: {error}")
    write_json(record, RESULTS / f"{args.name}.json")


def make_record(
    folder: Path, command: str, label: str | None = None, note: str = ""
) -> dict[str, Any]:
    """Return the record of the evaluation in `folder`. Raises CrkdError if it cannot be read."""
    evaluation = read_evaluation(folder)
    facts, run = evaluation.facts, evaluation.checkpoint.parent
    trained = read_json(run / "metrics.json") if (run / "metrics.json").is_file() else {}
    log = read_log(run)
    steps, seconds = training_time(log)
    data = facts.config["data"]
    frame = "x".join(map(str, data["frame"]["resize"] or data["frame"]["patch"]))
    return {
        "label": label or facts.method,
        "seed": facts.seed,
        "setting": f"{data['name']} {facts.labeled} {frame} {max(steps, facts.step)}",
        "command": command,
        **environment(),
        "device": trained.get("device", ""),
        "config": facts.config,
        "seconds": round(seconds, 1) if steps else None,
        "steps_per_second": round(steps / seconds, 3) if steps else None,
        "note": note,
        "validation": {
            line["step"]: round(100 * line["val/dice"], 1)
            for line in log
            if line.get("val/dice") is not None
        },
        "evaluation": summary(folder, evaluation),
        "cases": cases(evaluation),
    }


def training_time(log: list[dict[str, Any]]) -> tuple[int, float]:
    """Return the number of steps in the log of a run, resumed or not, and their seconds."""
    steps, seconds = 0, 0.0
    for line in log:
        if "steps_per_second" in line:
            seconds += (line["step"] - steps) / line["steps_per_second"]
            steps = line["step"]
    return steps, seconds


def summary(folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return what was scored and, for each class and the mean of all, [mean, low, high]."""
    tree = read_json(folder / "summary.json")
    scores = {}
    by_class = {name: info["scores"] for name, info in tree["classes"].items()}
    for name, metrics in {"mean": tree["mean"], **by_class}.items():
        scores[name] = {
            metric: [value[key] and round(value[key], 6) for key in ("mean", "low", "high")]
            for metric, value in metrics.items()
        }
    facts = {key: tree[key] for key in SUMMARY}
    return {**facts, "checkpoint": evaluation.checkpoint.name, "scores": scores}


def cases(evaluation: Evaluation) -> list[list[Any]]:
    """Return [case, patient, scores of the first class, scores of the second, …] of each case."""
    scores = np.round(evaluation.scores, 4).astype(object)
    scores[np.isnan(evaluation.scores)] = None
    rows = zip(evaluation.cases, evaluation.groups, scores.tolist(), strict=True)
    return [[case, group, *by_class] for case, group, by_class in rows]


if __name__ == "__main__":
    main()
