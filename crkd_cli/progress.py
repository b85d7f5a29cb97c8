"""The callbacks through which long work reports to its caller."""

from collections.abc import Callable
from contextlib import AbstractContextManager

# notify(line)
Notify = Callable[[str], None]
# advance(amount=1, note=None)
Advance = Callable[..., None]
# with progress(title, total, unit) as advance: …
Progress = Callable[[str, int | None, str], AbstractContextManager[Advance]]
