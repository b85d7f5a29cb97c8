"""Methods from a user's file or another package: their errors name the file, in one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from crkd_cli.errors import CrkdError, UsageError, describe_exception, is_out_of_memory
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method
from crkd_cli.runtime.distributed import is_lost_process

# What a method may ask of the loop.
ALLOWED = {"unlabeled_streams": range(3), "strong_views": range(100), "updates": range(1, 100)}


def check_declaration(method_class: type[Method]) -> type[Method]:
    """Return `method_class`. Raises UsageError if a class attribute is out of range."""
    for name, allowed in ALLOWED.items():
        value = getattr(method_class, name)
        if value not in allowed:
            raise UsageError(
                f"{source_file(method_class)}: {method_class.__name__}.{name} = {value!r}; "
                f"expected a whole number, {allowed[0]} to {allowed[-1]}"
            )
    return method_class


@contextmanager
def attribute_errors(method_class: type[Method]) -> Iterator[None]:
    """Turn the errors of a method that is not built in into UsageErrors with its file and line."""
    try:
        yield
    except (CrkdError, MemoryError):
        raise
    except Exception as error:
        if METHODS.is_builtin(method_class) or _is_explained_elsewhere(error):
            raise
        file = source_file(method_class)
        raise UsageError(
            f"{file}: {describe_exception(file, error)}; correct it, --verbose shows more"
        ) from error


def check_losses(losses: dict[str, Tensor], method_class: type[Method]) -> dict[str, Tensor]:
    """Return `losses`, the result of a method's `losses()`.

    Raises UsageError unless it is a dict of scalar tensors whose "total" has a gradient.
    """
    file = source_file(method_class)
    expected = 'expected a dict of tensors with one value each, "total" among them'
    if not isinstance(losses, dict) or "total" not in losses:
        raise UsageError(f"{file}: losses() returned {_describe_result(losses)}; {expected}")
    for name, value in losses.items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f'{file}: "{name}" of losses() is a {type(value).__name__}; {expected}'
            )
        if value.ndim:
            raise UsageError(
                f'{file}: "{name}" of losses() is of shape {[*value.shape]}; {expected}'
            )
    if not losses["total"].requires_grad:
        raise UsageError(
            f'{file}: "total" of losses() has no gradient; compute it from the outputs of '
            "self.student"
        )
    return losses


def is_single_value_error(error: Exception) -> bool:
    """Whether batch norm refused a batch with one value per channel."""
    return "more than 1 value per channel" in str(error)


def source_file(method_class: type[Method]) -> str:
    """Return the file that a method is defined in."""
    return str(sys.modules[method_class.__module__].__file__)


def _is_explained_elsewhere(error: Exception) -> bool:
    return is_out_of_memory(error) or is_lost_process(error) or is_single_value_error(error)


def _describe_result(losses: Any) -> str:
    if isinstance(losses, dict):
        return f"the names {', '.join(map(str, losses))}"
    return type(losses).__name__
