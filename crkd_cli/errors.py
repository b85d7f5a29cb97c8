"""Errors that a user can fix: the command line turns these, and only these, into one line."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from traceback import extract_tb


class CrkdError(Exception):
    """Something is wrong with the data or a file (exit code 1).

    The message says what is wrong, in which file, and what to do. `details` are lines below it.
    """

    exit_code = 1

    def __init__(self, message: str = "", details: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class UsageError(CrkdError):
    """Something is wrong with the command or the configuration (exit code 2)."""

    exit_code = 2


def describe_exception(file: str, error: BaseException) -> str:
    """Describe an exception raised in a user's `file`, with the line number.

    For example "ZeroDivisionError: division by zero, line 4".
    """
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{message}, line {lines[-1]}" if lines else message


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` says that memory ran out.

    PyTorch raises a RuntimeError on a CPU and a class of its own on a GPU, which is recognized by
    its name so that torch need not be imported here.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "can't allocate memory" in str(error)


@contextmanager
def suppress_out_of_memory() -> Iterator[None]:
    """Suppress the errors that say that memory ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise


def pluralize(count: int, noun: str) -> str:
    """Return "1 case" or "2 cases"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """Return the end of an error message: the nearest name if there is one, else all names."""
    names = list(names)
    if not names:
        return "there is nothing to choose from"
    near = nearest_name(wrong, names)
    return f"choose from {', '.join(names)}" if near is None else f"did you mean {near!r}?"


def nearest_name(wrong: str, names: Iterable[str]) -> str | None:
    """Return the name that `wrong` is probably a misspelling of; None if none is similar."""
    near = get_close_matches(wrong.lower(), list(names), n=1)
    return near[0] if near else None
