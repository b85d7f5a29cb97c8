"""Methods from a user's file or another package: what goes wrong in one is a line that names the file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from crkd_cli.errors import CrkdError, UsageError, describe_exception, is_out_of_memory
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method
from crkd_cli.runtime.distributed import is_lost_process


def check_declaration(kind: type[Method]) -> type[Method]:
    """The method as it is. Raises UsageError if it asks the loop for what there is not."""
    most = {"unlabeled_streams": range(3), "strong_views": range(100), "updates": range(1, 100)}
    for name, allowed in most.items():
        if getattr(kind, name) not in allowed:
            few = f"{allowed[0]} to {allowed[-1]}"
            raise UsageError(
                f"{source_file(kind)}: {kind.__name__}.{name} = {getattr(kind, name)!r}; give a whole number, {few}"
            )
    return kind


@contextmanager
def attribute_errors(kind: type[Method]) -> Iterator[None]:
    """Inside, errors of a method that is not one of the built-in ones become UsageErrors, with the line in its file."""
    try:
        yield
    except (CrkdError, MemoryError):
        raise
    except Exception as error:
        if (
            METHODS.is_builtin(kind)
            or is_out_of_memory(error)
            or is_lost_process(error)
            or _one_value(error)
        ):
            raise
        file = source_file(kind)
        raise UsageError(
            f"{file}: {describe_exception(file, error)}; correct it, --verbose shows more"
        ) from error


def check_losses(losses: dict[str, Tensor], kind: type[Method]) -> dict[str, Tensor]:
    """What a method's `losses` gave. Raises UsageError unless it is scalar tensors by name and "total" has a gradient."""
    wanted = 'give a dict of tensors with one value each, "total" among them'
    if not isinstance(losses, dict) or "total" not in losses:
        found = (
            f"the names {', '.join(map(str, losses))}"
            if isinstance(losses, dict)
            else type(losses).__name__
        )
        raise UsageError(f"{source_file(kind)}: losses() returned {found}; {wanted}")
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim:
            found = (
                f"of shape {[*value.shape]}"
                if isinstance(value, Tensor)
                else f"a {type(value).__name__}"
            )
            raise UsageError(f'{source_file(kind)}: "{name}" of losses() is {found}; {wanted}')
    if not losses["total"].requires_grad:
        raise UsageError(
            f'{source_file(kind)}: "total" of losses() has no gradient; compute it from the answers of self.student'
        )
    return losses


def _one_value(error: Exception) -> bool:
    """Batch norm's own words for too small a batch, of which the loop says more."""
    return "more than 1 value per channel" in str(error)


def source_file(kind: type[Method]) -> str:
    """Where a method is written."""
    return str(sys.modules[kind.__module__].__file__)
