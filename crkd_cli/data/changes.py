"""How a prepared dataset differs from the one that a model was trained on."""

from collections.abc import Mapping

from crkd_cli.data.store import Store, digest
from crkd_cli.errors import pluralize

# What is compared for every case, as named in messages.
FACTS = ("image", "label", "spacing", "patient")
DIGITS = 8  # hexadecimal, kept of each digest
Fingerprints = Mapping[str, tuple[str, ...]]


def fingerprints(store: Store) -> dict[str, tuple[str, ...]]:
    """Return short digests of the FACTS of every case."""
    result = {}
    for case in store.index.cases:
        facts = ((case.sha256, case.shape), case.label_sha256, case.spacing_mm, case.group)
        result[case.id] = tuple(digest([(fact,)])[:DIGITS] for fact in facts)
    return result


def describe_changes(before: Fingerprints, store: Store) -> str:
    """Count what differs: "1 case is missing, 2 labels differ"; empty if nothing does."""
    now = fingerprints(store)
    missing, new = len(before.keys() - now.keys()), len(now.keys() - before.keys())
    parts = []
    for count, state in ((missing, "missing"), (new, "new")):
        if count:
            verb = "is" if count == 1 else "are"
            parts.append(f"{pluralize(count, 'case')} {verb} {state}")
    common = before.keys() & now.keys()
    for number, fact in enumerate(FACTS):
        count = sum(before[case][number] != now[case][number] for case in common)
        if count:
            verb = "differs" if count == 1 else "differ"
            parts.append(f"{pluralize(count, fact)} {verb}")
    return ", ".join(parts)
