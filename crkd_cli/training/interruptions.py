"""What ends a run early: signals, the loss of another process, and errors with a known remedy."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from crkd_cli import world
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.runtime.distributed import is_lost_process
from crkd_cli.runtime.user_method import is_single_value_error

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StoppedBySignalError(CrkdError):
    """A signal ended the run after a step; everything is saved. Exit code 128 + the signal."""

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name} after step {step}; everything is saved; "
            "rerun the same command to resume"
        )
        self.exit_code = 128 + number


class ProcessLostError(CrkdError):
    """Another process of the run ended; the message says what the checkpoint `last` holds."""

    def __init__(self, last: Path) -> None:
        saved = "nothing was saved yet"
        if last.exists():
            saved = f"{last} of step {load_checkpoint(last).step} is intact"
        super().__init__(
            f"another process of this run ended; {saved}; rerun the same command to resume"
        )


class SignalCatcher:
    """Notes the first of SIGNALS in `received`, to be acted on at the end of the step.

    In a single process a second signal acts as usual, except SIGHUP, which a closing terminal and
    its shell both send. With several processes all are noted, because torchrun and --parallel
    forward a signal that every process may already have received from the terminal or the batch
    system. A SIGHUP that is ignored, as nohup does, stays ignored.

    Args:
        on_signal: Called when a signal was noted.
    """

    received: int = 0  # the signal's number; 0: none so far

    def __init__(self, on_signal: Callable[[], None] | None = None) -> None:
        self._on_signal = on_signal

    def __enter__(self) -> "SignalCatcher":
        numbers = list(SIGNALS)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            numbers.remove(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and world.size() > 1:
            # torchrun sends SIGTERM as soon as it sees that another process ended. This one ends by
            # itself, once it has reported the error.
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if world.size() == world.runs() == 1:
            for other in self._handlers.keys() - {signal.SIGHUP}:
                signal.signal(other, self._handlers[other])
        if self._on_signal:
            self._on_signal()


@contextmanager
def explain_errors(last: Path) -> Iterator[None]:
    """Turn the errors of torch that the user can act on into CrkdErrors.

    A lost process becomes a ProcessLostError that names `last`, the run's checkpoint; batch norm's
    complaint about a single value becomes a UsageError.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise ProcessLostError(last) from None
    except ValueError as error:
        if not is_single_value_error(error):
            raise
        raise UsageError(
            "batch norm gets a single value per channel, from one image whose data.frame is 16 on "
            "every side; use a larger frame, or at least 2 images per process: "
            "--set data.labeled_batch_size=2 --set data.unlabeled_batch_size=2"
        ) from None
