"""Compare three suggested labels with three random ones.

    python -m benchmarks.labeling FOLDER

Each trial trains `supervised` on three labeled hearts of the phantom, which must be prepared, and
then from the start on six: with the three that `crkd.suggest` names, and several times with three
random ones. The cases that are scored are the same in all trials. FOLDER keeps the runs and
labeling.json, so that an interrupted comparison continues.
"""

import json
import random
import sys
from pathlib import Path

from msgspec.structs import replace

import crkd_cli as crkd
from crkd_cli.data.splits import write_split

TRIALS, DRAWS, LABELS = 3, 5, 3
SETTINGS = {"train.steps": 200, "train.eval_every": 50}  # half as long as the default


def main(folder: Path) -> None:
    """Run all trials and print their Dice after each."""
    scored = crkd.make_splits("phantom", LABELS)
    for trial in range(TRIALS):
        draw = random.Random(trial)
        first = draw.sample(scored.train, LABELS)
        others = [case for case in scored.train if case not in first]
        results = {"3 labels": dice(folder, scored, f"{trial}-3", first, trial)}
        suggestions = crkd.suggest("phantom", folder / f"{trial}-3", LABELS)
        named = [suggestion.case for suggestion in suggestions.cases]
        results["suggested"] = dice(folder, scored, f"{trial}-suggested", first + named, trial)
        for number in range(DRAWS):
            added = draw.sample(others, LABELS)
            name = f"random {number}"
            results[name] = dice(folder, scored, f"{trial}-random{number}", first + added, trial)
        print(trial, {name: round(value, 3) for name, value in results.items()}, flush=True)


def dice(folder: Path, scored: crkd.Split, name: str, labeled: list[str], trial: int) -> float:
    """Train on the `labeled` hearts and return the Dice on the test part, or that kept before."""
    file = folder / "labeling.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    if name not in kept:
        split = folder / f"{name}.yaml"
        write_split(replace(scored, name=name, labeled=tuple(labeled)), split)
        run = crkd.train(
            "phantom",
            method="supervised",
            settings=SETTINGS,
            split=split,
            seed=1337 + trial,
            out=folder / name,
        )
        kept[name] = crkd.evaluate(run.checkpoint).mean[0].mean
        file.write_text(json.dumps(kept, indent=1))
    return float(kept[name])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
