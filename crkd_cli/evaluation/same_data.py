"""Check that a prepared dataset is the one that a model was trained on."""

from crkd_cli.data.changes import describe_other_kind
from crkd_cli.data.labels import describe_difference
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.progress import Notify
from crkd_cli.runtime.checkpoint import Checkpoint


def check_same_dataset(checkpoint: Checkpoint, store: Store) -> None:
    """Raise CrkdError unless `store` is of the kind that the model was trained on."""
    other = f"{store.root} is not the dataset that {checkpoint.path} was trained on"
    if checkpoint.spec.classes != store.spec.classes:
        difference = describe_difference(checkpoint.spec.classes, store.spec.classes)
        raise CrkdError(
            f"{other}: {difference}; give the right --data-root, prepare the dataset with the same "
            "classes, or train again"
        )
    if difference := describe_other_kind(checkpoint.spec, store.spec):
        raise CrkdError(
            f"{other}: {difference}; give the right --data-root, prepare the dataset as it was, or "
            "train again"
        )


def check_same_cases(
    checkpoint: Checkpoint, store: Store, changes: str, notify: Notify, *, other_data: bool
) -> None:
    """Raise UsageError if the dataset has `changes` since training, unless `other_data`."""
    if not changes:
        return
    difference = f"{store.root} has changed since {checkpoint.path} was trained on it: {changes}"
    if not other_data:
        raise UsageError(f"{difference}; add --other-data to score the model on it anyway")
    notify(difference)
