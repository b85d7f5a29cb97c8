"""The first difference between two datasets, and what a new preparation changes, in words."""

import pytest
from msgspec.structs import replace

from crkd_cli.data.changes import describe_other_kind, find_new_content
from crkd_cli.data.plan import Plan
from crkd_cli.data.store import ChannelInfo, DatasetSpec, Window, numbered_classes

T1, FLAIR = (ChannelInfo("MR", "zscore", name) for name in ("T1", "FLAIR"))
CT = ChannelInfo("CT", "window", "T1", Window(low=-100, high=240, mean=80.5, std=30))
SPEC = DatasetSpec(
    name="mine",
    source="folder",
    classes=numbered_classes(("background", "tumor")),
    channels=(T1, FLAIR),
    dims=3,
    plan=Plan(orientation="RAS", spacing=(1.0, 1.0, 1.0), patch=(32, 32, 32)),
)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"name": "other"}, ""),
        ({"channels": (T1,)}, "the list of channels was T1, FLAIR, now T1"),
        ({"channels": (FLAIR, T1)}, "the list of channels was T1, FLAIR, now FLAIR, T1"),
        ({"channels": (CT, FLAIR)}, "the modality of channel T1 was MR, now CT"),
        ({"dims": 2}, "the number of axes was 3, now 2"),
        ({"plan": replace(SPEC.plan, network="2D", patch=(64, 64), batch=2)}, ""),
        ({"plan": None}, "the grid was planned, now as published"),
        (
            {"plan": replace(SPEC.plan, spacing=(2.0, 1.0, 1.0))},
            "plan.spacing was (1.0, 1.0, 1.0), now (2.0, 1.0, 1.0)",
        ),
    ],
)
def test_the_first_difference(changed, expected):
    assert describe_other_kind(SPEC, replace(SPEC, **changed)) == expected


def test_windows():
    old = replace(SPEC, channels=(CT,))
    new = replace(SPEC, channels=(replace(CT, window=replace(CT.window, high=1200.25)),))
    assert describe_other_kind(old, new) == (
        "the window of channel T1 was -100 … 240 (mean 80.5, standard deviation 30), "
        "now -100 … 1200.25 (mean 80.5, standard deviation 30)"
    )


def test_what_a_new_preparation_changes(make_store, tmp_path):
    store = make_store(groups=7, unlabeled={"p01", "p02"})
    cases = list(store.index.cases)
    assert str(find_new_content(store.root, cases)) == ""
    assert str(find_new_content(tmp_path / "none", cases)) == ""
    cases[1] = replace(cases[1], label_sha256="1")  # a new label
    cases[2] = replace(cases[2], sha256="1")  # another image
    cases[3] = replace(cases[3], label_sha256="1")  # another label
    cases[4] = replace(cases[4], label_sha256=None)  # no label any more
    cases[5:] = [replace(cases[5], id="new1"), replace(cases[6], id="new2")]
    content = find_new_content(store.root, cases)
    assert str(content) == (
        "1 new label: p01; 2 new images: new1, new2; 1 changed label: p03; 1 changed image: p02; "
        "1 removed label: p04; 2 removed images: p05, p06"
    )
