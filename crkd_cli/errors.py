"""The errors that a user can mend: the only ones the command line turns into one line and an exit code."""

from collections.abc import Iterable
from difflib import get_close_matches
from traceback import extract_tb


class CrkdError(Exception):
    """Something is wrong with the data or a file. The message says what, where, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(CrkdError):
    """The command or the configuration is wrong. Exit code 2."""

    exit_code = 2


def describe_exception(file: str, error: BaseException) -> str:
    """What went wrong in foreign code and in which line of `file`: "ZeroDivisionError: division by zero, line 4"."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
    return " ".join(f"{type(error).__name__}: {error}".split()) + (
        f", line {lines[-1]}" if lines else ""
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: PyTorch says so by a RuntimeError, on a GPU one of its own, which is not imported for that."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def pluralize(count: int, noun: str) -> str:
    """1 case, 2 cases."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """The end of an error message: the nearest name if there is one, else all names."""
    names = list(names)
    if not names:
        return "there is nothing to choose from"
    near = get_close_matches(wrong.lower(), names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
