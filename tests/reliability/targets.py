"""What is damaged, which commands meet it, and what they must not give.

A target returns the digest of what the commands made of the input if that must be the same as for
the undamaged input, and None if it may differ or if the input was refused.
"""

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from tests.reliability import mutate, workspace
from tests.reliability.trial import Trial, digest
from tests.reliability.workspace import evaluate, predict, prepare, train

Target = Callable[[Trial], str | None]
Damage = Callable[[bytes, random.Random], bytes]


def _damage(trial: Trial, file: Path, damage: Damage) -> None:
    draw = random.Random(trial.draw.random())  # so that later draws are those of the intact trial
    if not trial.intact:
        file.write_bytes(damage(file.read_bytes(), draw))


def _as_text(damage: Callable[[str, random.Random], bytes]) -> Damage:
    return lambda data, draw: damage(data.decode(), draw)


text, tree, settings = map(_as_text, (mutate.mutate_text, mutate.mutate_json, mutate.mutate_yaml))


# Settings


def config(trial: Trial) -> None:
    """A configuration file."""
    file = trial.folder / "config.yaml"
    file.write_bytes(trial.work.config.read_bytes())
    _damage(trial, file, settings)
    trial.crkd(train(trial.work, trial.folder / "run", "--stop-after", 1, config=file))


def overrides(trial: Trial) -> None:
    """Values of --set."""
    keys = [key for key, _ in _flat(yaml.safe_load(workspace.CONFIG))]
    keys += ["train.lr_horizon", "train.momentum", "train.seed", "train.save_minutes"]
    keys += ["train.lr_power", "train.weight_decay", "train.optimizer", "model", "x.y", "", "."]
    keys += ["data.frame.patch", "data.frame.stride", "methods.supervised.x", "train.tensorboard"]
    words = (*mutate.TEXTS, *map(str, mutate.NUMBERS), *map(str, mutate.FLOATS))
    values = []
    for _ in range(trial.draw.choice((1, 1, 2))):
        values += ["--set", f"{trial.draw.choice(keys)}={trial.draw.choice(words)}"]
    trial.crkd(train(trial.work, trial.folder / "run", "--stop-after", 1, *_plain(values)))


TRAIN_OPTIONS = ("--labeled", "--seeds", "--parallel", "--stop-after", "--device")
TRAIN_OPTIONS += ("--method", "--dataset", "--config", "--split")


def options(trial: Trial) -> None:
    """Values of other options."""
    work, out = trial.work, trial.folder / "out"
    words = (*mutate.TEXTS, *map(str, mutate.NUMBERS), *map(str, mutate.FLOATS), "cuda:99", "x")
    checkpoint = work.checkpoint(2)
    commands = [
        (prepare(work.source(2), trial.folder), ("--spacing", "--source", "--data-root")),
        (prepare(work.source("ct"), trial.folder, "ct"), ("--memory", "--workers", "--ignore")),
        (
            ["make-splits", "own2d", "--data-root", work.data, "--out", out],
            ("--labeled", "--val", "--test", "--seed", "--data-root"),
        ),
        (
            train(work, out, "--stop-after", 1),
            TRAIN_OPTIONS,
        ),
        (
            evaluate(checkpoint, work.data, "--out", out),
            ("--part", "--protocol", "--device", "--data-root"),
        ),
        (predict(work.source(2) / "images", checkpoint, out), ("--checkpoint", "--device")),
        (["compare", work.run("a"), work.run("b")], ("--protocol", "--part", "--device")),
        (["compare"], ("--protocol",)),
    ]
    arguments, names = trial.draw.choice(commands)
    chosen = [trial.draw.choice(names), trial.draw.choice(words)]
    trial.crkd([*arguments, *_plain(chosen)])


def split(trial: Trial) -> None:
    """A split file."""
    file = trial.folder / "split.yaml"
    file.write_bytes(trial.work.split.read_bytes())
    _damage(trial, file, settings)
    trial.crkd(train(trial.work, trial.folder / "run", "--stop-after", 1, split=file))


def stored_split(trial: Trial) -> None:
    """A split that make-splits wrote."""
    store = trial.copy(trial.work.store(), "data/prepared/own2d")
    data = trial.folder / "data"
    (store / "splits").mkdir()
    (store / "splits" / "2.yaml").write_bytes(trial.work.split.read_bytes())
    _damage(trial, store / "splits" / "2.yaml", settings)
    words = train(trial.work, trial.folder / "run", "--stop-after", 1, "--labeled", 2, data=data)
    at = words.index("--split")
    trial.crkd([*words[:at], *words[at + 2 :]])


# Own files


def checkpoint_bytes(trial: Trial) -> str | None:
    """The bytes of a checkpoint. Every one is under a checksum."""
    file = trial.folder / "last.pth"
    file.write_bytes(trial.work.checkpoint(2).read_bytes())
    _damage(trial, file, mutate.mutate_bytes)
    out = trial.folder / "out"
    outcome = trial.crkd(predict(trial.work.source(2) / "images", file, out))
    return None if outcome.code else digest(out)


def checkpoint_content(trial: Trial) -> None:
    """Values of other types in a checkpoint, used by all commands that read one."""
    run = trial.copy(trial.work.run("a"), "run")
    file = run / "last.pth"
    if not trial.intact:
        content = torch.load(file, weights_only=True)
        torch.save(mutate.mutate_tree(content, trial.draw), file)
    work = trial.work
    command = trial.draw.choice(
        (
            predict(work.source(2) / "images", file, trial.folder / "out"),
            evaluate(file, work.data),
            train(work, run),
            train(work, run, "--set", f"train.steps={workspace.STEPS + 2}"),
        )
    )
    trial.crkd(command)


def store_index(trial: Trial) -> str | None:
    """The index of a store."""
    store = trial.copy(trial.work.store(), "data/prepared/own2d")
    _damage(trial, store / "index.json", tree)
    return _use_store(trial)


def store_arrays(trial: Trial) -> str | None:
    """An array of a store. Every byte is under a checksum."""
    store = trial.copy(trial.work.store(), "data/prepared/own2d")
    file = trial.draw.choice(sorted(store.rglob("*.npy")))
    if file.stem in ("case0", "case1", "case2") and trial.draw.random() < 0.6:
        file = file.with_stem("case4")
    _damage(trial, file, trial.draw.choice((mutate.mutate_bytes, _npy_header)))
    return _use_store(trial)


def _npy_header(data: bytes, draw: random.Random) -> bytes:
    end = data.index(b"\n") + 1
    return mutate.mutate_bytes(data[:end], draw) + data[end:]


def _use_store(trial: Trial) -> str | None:
    work, data = trial.work, trial.folder / "data"
    choice = trial.draw.randrange(6)
    if choice == 0:
        outcome = trial.crkd(train(work, trial.folder / "run", data=data))
        return None
    if choice == 1:
        trial.crkd(["make-splits", "own2d", "--labeled", 2, "--data-root", data])
        return None
    out = trial.folder / "out"
    outcome = trial.crkd(evaluate(work.checkpoint(2), data, "--out", out))
    return None if outcome.code else _scores(out)


def _scores(folder: Path) -> str:
    return digest(folder / "cases.csv")


def log(trial: Trial) -> None:
    """The log and the metrics of a run: nothing but a curve may change."""
    run = trial.copy(trial.work.run("a"), "run")
    file = run / trial.draw.choice(("log.jsonl", "log.jsonl", "metrics.json"))
    damage = tree if file.suffix == ".json" else trial.draw.choice((text, _json_lines))
    _damage(trial, file, damage)
    work = trial.work
    choice = trial.draw.randrange(4)
    if choice == 0:
        (run / "curves.png").unlink()
        trial.crkd(train(work, run))
    elif choice == 1:
        trial.crkd(train(work, run, "--set", f"train.steps={workspace.STEPS + 1}"))
    elif choice == 2:
        report = trial.folder / "report"
        trial.crkd(["compare", run, work.run("b"), "--report", report, "--data-root", work.data])
    else:
        trial.crkd(["compare", run, work.run("b")])


def _json_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines()
    number = draw.randrange(len(lines))
    changed = mutate.mutate_tree(json.loads(lines[number]), draw)
    lines[number] = json.dumps(changed).encode()
    return b"\n".join(lines) + b"\n"


def results(trial: Trial) -> str | None:
    """The files of an evaluation. They are one result: a part cannot be changed alone."""
    run = trial.copy(trial.work.run("a"), "run")
    folder = run / "evaluation-strict-test"
    file = folder / trial.draw.choice(("summary.json", "cases.csv"))
    _damage(trial, file, tree if file.suffix == ".json" else text)
    outcome = trial.crkd(["compare", run, trial.work.run("b"), "--json"])
    return None if outcome.code else outcome.stdout.replace(str(trial.folder), "")


def config_of_run(trial: Trial) -> None:
    """The configuration in a run folder, which people edit."""
    run = trial.copy(trial.work.run("a"), "run")
    _damage(trial, run / "config.yaml", settings)
    trial.crkd(train(trial.work, run))


# What users write about their files

DATASET_YAML = """\
channels:
  - {name: light, modality: gray}
classes: {background: 0, disc: 1}
ignore: 255
images: "images/*.png"
labels: "labels/{name}.png"
patients: "{patient}*"
spacing: [0.5, 0.5]
"""
DATASET_OF_VOLUMES = """\
channels:
  - {name: a, modality: CT}
classes: {disc: [1, 2]}
images: "images/*.nii.gz"
labels: "labels/{name}.nii.gz"
spacing: [3.0, 1.5, 1.5]
plan:
  orientation: RAS
  spacing: [3.0, 2.0, 1.5]
  network: 3D
  patch: [16, 16, 16]
  batch: 2
"""
DATASET_OF_CHANNELS = """\
channels:
  - {name: a, modality: MR}
  - {name: b, modality: CT}
images: {b: "images/{name}_0001*", a: "images/{name}_0000*"}
labels: {disc: "labels/{name}.nii.gz"}
plan: {spacing: native, network: 2D, patch: [16, 16], resize: [16, 16]}
"""
DATASET_OF_SERIES = """\
channels: [{name: a, modality: CT}]
classes: {disc: 1}
images: "images/{name}"
labels: "labels/{name}.nii.gz"
series: {a: "CT*"}
patients: patients.csv
"""
DATASET_JSON = """\
{"channel_names": {"0": "gray"}, "labels": {"background": 0, "disc": 1}, "file_ending": ".png",
 "numTraining": 6, "name": "discs", "modality": {"0": "gray"}, "ignore": 255}
"""


def description(trial: Trial) -> None:
    """dataset.yaml, dataset.json and patients.csv."""
    patients = "image,patient\n" + "".join(
        f"case{n}.png,p{n // 2}\n" for n in range(workspace.CASES)
    )
    data, name, content, damage = trial.draw.choice(
        (
            (2, "dataset.yaml", DATASET_YAML, settings),
            (2, "dataset.json", DATASET_JSON, tree),
            (2, "patients.csv", patients, text),
            (3, "dataset.yaml", DATASET_OF_VOLUMES, settings),
            ("two", "dataset.yaml", DATASET_OF_CHANNELS, settings),
            ("ct", "dataset.yaml", DATASET_OF_SERIES, settings),
        )
    )
    if trial.intact:
        return
    source = trial.copy(trial.work.source(data), "source")
    (source / "patients.csv").write_text(patients.replace(".png", ""))
    (source / name).write_text(content)
    _damage(trial, source / name, damage)
    command = prepare(source, trial.folder / "data", data)
    trial.crkd([*command, "--check"] if trial.draw.random() < 0.5 else command)


def archive(trial: Trial) -> str | None:
    """An archive of raw files. The pictures in it are under checksums in any case."""
    kind = trial.draw.choice(("zip", "tar", "tgz"))
    file = trial.folder / f"archive.{kind}"
    file.write_bytes(_pack(trial.work.source(2), kind))
    _damage(trial, file, mutate.mutate_bytes)
    data = trial.folder / "data"
    outcome = trial.crkd(prepare(file, data))
    prepared = data / "prepared" / "own2d"
    return None if outcome.code else digest(prepared / "images", prepared / "labels")


def _pack(source: Path, kind: str) -> bytes:
    content = io.BytesIO()
    files = [file for file in sorted(source.rglob("*")) if file.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in files:
                packed.write(file, file.relative_to(source))
    else:
        with tarfile.open(fileobj=content, mode="w:gz" if kind == "tgz" else "w") as tar:
            for file in files:
                tar.add(file, file.relative_to(source))
    return content.getvalue()


def names(trial: Trial) -> None:
    """File names that mean something to a terminal, a table or a path."""
    source = trial.folder / "source"
    image = (trial.work.source(2) / "images" / "case0.png").read_bytes()
    label = (trial.work.source(2) / "labels" / "case0.png").read_bytes()
    for folder in ("images", "labels"):
        (source / folder).mkdir(parents=True)
    for number in range(3):
        stem = trial.draw.choice(NAMES)
        if len(stem) < 250:  # a file system allows 255 bytes
            stem += str(number) * trial.draw.randrange(2)
        for folder, data in (("images", image), ("labels", label)):
            path = bytes(source / folder) + b"/" + stem.encode("utf-8", "surrogateescape") + b".png"
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(data)
    data = trial.folder / "data"
    trial.crkd(prepare(source, data))
    trial.crkd(predict(source / "images", trial.work.checkpoint(2), trial.folder / "out"))


NAMES = (
    "[bold",
    "[red]x",
    "\x1b[31mred",
    "=cmd|'C calc'!A0",
    "+1",
    "-x",
    "@x",
    "a" * 251,
    "\udcff\udcfe",
    "e\u0301",
    "\u00e9",
    "a\nb",
    "a\tb",
    "a,b",
    'a"b',
    "a b",
    " a",
    "a.b.c",
    ".hidden",
    "..",
    "a;b",
    "$(x)",
    "\u202eabc",
    "%s",
    "{x}",
    "CON",
    "\u2028",
    "*",
    "?",
    "x_0000",
    "x_0001",
    "x_mask",
)


def _flat(tree: object, prefix: str = "") -> list[tuple[str, object]]:
    if not isinstance(tree, dict):
        return [(prefix.rstrip("."), tree)]
    return [leaf for key, value in tree.items() for leaf in _flat(value, f"{prefix}{key}.")]


def _plain(words: list[str]) -> list[str]:
    """Return what a command line can hold: no NUL and no lone surrogates."""
    return [word.replace("\0", "").encode("utf-8", "replace").decode() for word in words]
