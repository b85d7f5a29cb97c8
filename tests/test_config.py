"""Configurations: every number has limits, whichever way it comes in."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from crkd_cli.config import (
    Config,
    Frame,
    Strict,
    build_config,
    check_overrides,
    dump,
    parse,
    read_yaml,
)
from crkd_cli.errors import UsageError
from crkd_cli.methods import METHODS

FILE = Path("run.yaml")
TREE = {
    "data": {
        "name": "toy",
        "frame": {"patch": [32, 32], "stride": [16, 16]},
        "labeled_batch_size": 1,
        "unlabeled_batch_size": 1,
    },
    "model": {"name": "unet"},
    "train": {"steps": 1, "lr_schedule": "step", "lr_milestones": [0.5]},
}
# As YAML, and as the text that a shell passes.
HOSTILE = [".nan", ".inf", "-.inf", "-1", "1e308", "1e999", "-1e999", "nan", "inf", "1" + "0" * 400]
HOSTILE += ["1" + "0" * 30, "9223372036854775808", "0x" + "f" * 300, "[]", "{}", "x", "''", "0x_"]
# A learning rate or weight as large as this is possible, and of no use.
ALLOWED = 1e6


def number_keys(kind, prefix):
    """The keys of all numbers in a section and its sections, with what sets the first of a list."""
    for field in msgspec.structs.fields(kind):
        path = f"{prefix}{field.name}"
        if isinstance(field.type, type) and issubclass(field.type, Strict):
            yield from number_keys(field.type, f"{path}.")
        elif field.type not in (str, bool) and is_number(field.type):
            yield path, "tuple" in str(field.type)


def is_number(annotation):
    return annotation in (int, float) or any(map(is_number, get_args(annotation)))


METHOD_KEYS = [
    key for name in METHODS.names() for key in number_keys(METHODS[name].Params, f"methods.{name}.")
]
KEYS = [*number_keys(Config, ""), *METHOD_KEYS]


def test_all_numbers_are_found():
    names = {key for key, _ in KEYS}
    assert {"train.lr", "train.seed", "data.frame.patch", "model.widths"} < names
    assert {"methods.crkd.temperature", "methods.lefed.feedback_levels"} < names
    assert len(KEYS) > 50


@pytest.mark.parametrize(("key", "is_list"), KEYS, ids=[key for key, _ in KEYS])
def test_a_number_is_finite_and_has_limits(key, is_list):
    for hostile in HOSTILE:
        text = f"[{hostile}, {hostile}, 16, 16, 16]" if is_list else hostile
        try:
            config = build_config(TREE, FILE, [f"{key}={text}"], lambda name: METHODS[name].Params)
        except UsageError as error:
            message = str(error)
            assert key in message
            assert "\n" not in message
            assert len(message) < 400
        else:
            value = flat(dump(config))[key]
            # -1 is a name in a list of nothing but names, an empty list has no numbers.
            assert value in ([], None) or 0 <= value <= ALLOWED, (key, hostile, value)


def flat(tree, prefix=""):
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        leaves[f"{prefix}{key}"] = value
    return leaves


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=0", "train.steps: expected a whole number from 1 to 1000000000"),
        ("train.steps=1e99", "train.steps: expected a whole number"),
        ("train.lr=0", "train.lr: expected a number above 0 to 1000000"),
        ("train.lr_horizon=.inf", "train.lr_horizon: expected a number from 1 to 1000000"),
        ("train.seed=4294967296", "train.seed: expected a whole number from 0 below 4294967296"),
        ("train.lr_milestones=[2]", "train.lr_milestones[0]: expected a number from 0 to 1"),
        ("model.widths=[1,1,1,1,70000]", "expected a whole number from 1 to 65536"),
        ("data.frame.patch=[16, -16]", "data.frame.patch[1]: expected a whole number from 1 to"),
        ("data.mirror=[0,2]", "mirror names axis 2, but the axes of a network with 2 sizes are"),
        ("methods.crkd.feature_dropout=1", "expected a number from 0 below 1"),
        ("methods.crossmatch.confidence_rampup=-1", "expected a number from 0 to 1000000"),
        ("train.steps=2024-13-45", "train.steps: expected a whole number, got text"),
        ("train.steps=0x_", "the value is not valid YAML: '0x_' is not a valid int"),
        ("train.steps=!!int x", "the value is not valid YAML: 'x' is not a valid int"),
        ("train.steps=[[[[", "the value is not valid YAML"),
        ("train.steps=" + "9" * 5000, "the value is not valid YAML"),
        ("train.steps=true", "train.steps: expected a whole number, got true or false"),
        ("train.steps={a: 1}", "train.steps: expected a whole number, got a section"),
        ("train.steps=\udce9", "the value is not valid YAML"),
        ("train.steps=\t", "the value is not valid YAML"),
        ("data.name=[a]", "data.name: expected text, got a list"),
        ("data.name=2024", "data.name: expected text"),
        ("data.name=../x", "data.name: expected a name, not a path"),
        ("data.name=''", "data.name: expected a name, not a path"),
        ("train.device=meta", "train.device: expected auto, cpu, cuda or cuda:N"),
        ("train.device=cuda:-1", "train.device: expected auto, cpu, cuda or cuda:N"),
        ("train.device=cuda:99999999999999999999", "train.device: expected auto, cpu"),
        ("train.device=''", "train.device: expected auto, cpu, cuda or cuda:N"),
        ('train.device="0"', "train.device: expected auto, cpu, cuda or cuda:N"),
        ("data.name=..", "data.name: expected a name, not a path"),
        ("data.labeled=100000", "data.labeled is now called data.labeled_batch_size"),
        ("train.steps.a=1", "train.steps is 1, not a section"),
        ("methods.crkd=5", "expected a section"),
        ("methods=[]", "methods: expected a section"),
        ("..=1", "unknown key"),
        ("." + "a." * 5000 + "=1", "unknown key"),
        ("x" * 5000 + "=1", "unknown key"),
    ],
    ids=range(37),
)
def test_a_value_is_refused_with_key_and_range(override, words):
    with pytest.raises(UsageError, match=re.escape(words)) as error:
        build_config(TREE, FILE, [override], lambda name: METHODS[name].Params)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.step=5", "unknown key train.step; did you mean train.steps?"),
        ("trian.steps=5", "unknown key trian; did you mean train?"),
        ("data.frame.strid=[8,8]", "unknown key data.frame.strid; did you mean data.frame.stride?"),
        ("steps=5", "unknown key steps; did you mean train.steps?"),
        ("name=unet", "unknown key name; did you mean data.name or model.name?"),
        ("tau=1", "unknown key tau; choose from data, model, train, method, methods"),
        ("train.steps=five", "train.steps: expected a whole number, got text"),
        ("train.steps=0", "train.steps: expected a whole number from 1 to 1000000000"),
        ("train.steps.a=1", "train.steps: expected a whole number, got a section"),
        ("train.optimizer=sdg", "train.optimizer is 'sdg'; did you mean 'sgd'?"),
        ("train.lr=.nan", "train.lr: expected a"),
        ("train={lr: 1}", "train.steps is missing"),
        ("data.labeled=4", "data.labeled is now called data.labeled_batch_size"),
        ("train.steps", "expected key.path=value"),
    ],
)
def test_an_override_alone_is_refused_with_a_hint(override, hint):
    with pytest.raises(UsageError) as error:
        check_overrides(["train.lr=0.1", override])
    assert str(error.value).startswith("--set ")
    assert hint in str(error.value)


def test_an_override_alone_need_not_be_complete():
    """Whether settings fit together depends on the file, and methods have settings of their own."""
    check_overrides(
        [
            "data.frame.stride=[8, 8]",
            "train.lr_schedule=step",
            "train.momentum=1",
            "train.lr=1e-4",
            "data.mirror=null",
            "method=mine",
            "methods.crkd.confidence=2",
            "data.frame={patch: [32, 32]}",
        ]
    )


@pytest.mark.parametrize(
    ("mirror", "axes"), [("null", (0, 1)), ("[]", ()), ("[1]", (1,)), ("[1,0,1]", (0, 1))]
)
def test_axes_along_which_images_may_be_flipped(mirror, axes):
    config = build_config(TREE, FILE, [f"data.mirror={mirror}"], lambda name: METHODS[name].Params)
    assert config.data.mirrored_axes == axes


class Own(Strict, frozen=True):
    """As in a method of a user, who sets no limits."""

    weight: float = 1.0
    levels: tuple[float, ...] = ()
    table: dict[str, float] | None = None


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"weight": float("nan")}, "weight"),
        ({"weight": "inf"}, "weight"),
        ({"levels": [0, "1e999"]}, "levels[1]"),
        ({"table": {"a": float("inf")}}, "table.a"),
    ],
)
def test_numbers_without_limits_are_finite(tree, key):
    with pytest.raises(UsageError, match=re.escape(f"methods.own.{key}: expected a finite number")):
        parse(tree, Own, "run.yaml", section="methods.own")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a configuration"),
        ("[1]", "is not a configuration"),
        ("2024-13-45", "is not a configuration"),
        ("a: 1\na: 2", "is not valid YAML: a occurs twice, line 2"),
        ("a: &a [1]\nb: *a", "aliases are not supported"),
        ("#" * 11_000_000, "longer than 4 MB"),
    ],
    ids=range(6),
)
def test_a_file_is_refused(tmp_path, text, words):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"{re.escape(str(file))} .*{words}"):
        read_yaml(file)


def test_a_missing_file_and_a_folder(tmp_path):
    for file, reason in ((tmp_path / "no", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=f"cannot read the configuration {file}: {reason}"):
            read_yaml(file)


@pytest.mark.parametrize("value", [[], 1, None, [[[]]], {"a": {}}])
@pytest.mark.parametrize("section", ["data", "model", "train", "method", "methods"])
def test_nested_wrong_types(section, value):
    tree = {**TREE, section: value}
    with pytest.raises(UsageError, match=f"{section}|no method is called 'a'"):
        build_config(tree, FILE, (), lambda name: METHODS[name].Params)


@pytest.mark.parametrize(
    ("size", "halvings", "strides"),
    [
        ((16, 224), (4, 4), ((2, 2), (2, 2), (2, 2), (2, 2))),
        ((24, 48), (3, 4), ((1, 2), (2, 2), (2, 2), (2, 2))),
        ((20, 64, 40), (2, 4, 3), ((1, 2, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))),
        ((4, 8, 12), (2, 3, 2), ((1, 2, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1))),
    ],
    ids=str,
)
def test_sides_are_halved_as_often_as_they_can(size, halvings, strides):
    """Short axes keep their size at the high resolutions; without any long axis, all at the low."""
    frame = Frame(patch=size)
    assert frame.halvings == halvings
    assert frame.strides == strides


@pytest.mark.parametrize("size", [(16, 30), (2, 16), (18, 16, 16)], ids=str)
def test_a_side_that_cannot_be_halved_twice_is_refused(size):
    with pytest.raises(ValueError, match=f"multiple of 4 .*{re.escape(str(list(size)))}"):
        Frame(patch=size)
