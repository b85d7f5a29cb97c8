"""How work is told to the user: what the command line hands to the layers below it."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Notify = Callable[[str], None]  # one line
Advance = Callable[..., None]  # advance(amount=1, note=None)
Progress = Callable[[str, int | None, str], AbstractContextManager[Advance]]  # title, total, unit
