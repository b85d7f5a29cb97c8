"""Runs training steps as CUDA graphs: one launch in place of a thousand kernels from the host."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from crkd_cli import world
from crkd_cli.data.batch import Batch
from crkd_cli.errors import CrkdError, is_out_of_memory
from crkd_cli.progress import Notify
from crkd_cli.training.step import TrainingStep

# Steps of a phase before its graph is captured: libraries choose their kernels in the first ones.
WARM_UP_STEPS = 10


class Capturer(Protocol):
    """Records work on a device, and repeats it."""

    def warm_up(self) -> AbstractContextManager[None]:
        """Return the context in which work runs before it is captured."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work` without running it; return a function that runs what was recorded."""


class CudaCapturer:
    """Captures CUDA graphs that share one memory pool."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Run on the stream that captures, as gradients belong to the stream of their step."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture `work` as a graph; return a function that launches it."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile.
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            work()
        return graph.replay


def choose_runner(
    step: TrainingStep, graphs: bool, notify: Notify, before_capture: Callable[[], None]
) -> "TrainingStep | GraphedStep":
    """Return what runs `step`: a GraphedStep on a GPU, with `graphs`; else the step itself."""
    if step.device.type != "cuda" or not graphs:
        return step
    if world.size() > 1:
        notify("several processes: steps are not captured as CUDA graphs")
        return step
    return GraphedStep(step, CudaCapturer(), notify, before_capture)


class GraphedStep:
    """Runs a TrainingStep, captured after a few steps of each phase of the method.

    A method that cannot be captured, such as one from a user's file that reads a value from the
    device, is run as it is, after a notice.

    Args:
        step: The step to run.
        capturer: Captures it.
        notify: Called with the notice.
        before_capture: Called before a capture, which must not overlap with other work on the
            device.
    """

    def __init__(
        self,
        step: TrainingStep,
        capturer: Capturer,
        notify: Notify,
        before_capture: Callable[[], None],
    ) -> None:
        self._step, self._capturer = step, capturer
        self._notify, self._before_capture = notify, before_capture
        self._warm_ups: Counter[int] = Counter()  # by phase
        self._replays: dict[int, Callable[[], None]] = {}  # by phase
        self._inputs: Batch | None = None  # the batch in the memory that the graphs read
        self._possible = True

    def run(self, batch: Batch) -> None:
        """Run the prepared step on `batch`. The shapes of its tensors must never change."""
        phase = self._step.method.phase
        if phase in self._replays:
            self._replay(phase, batch)
        elif self._possible and self._warm_ups[phase] == WARM_UP_STEPS:
            self._capture(phase, batch)
            self._replay(phase, batch)
        else:
            self._run_eagerly(phase, batch)

    def _run_eagerly(self, phase: int, batch: Batch) -> None:
        with self._capturer.warm_up():
            self._step.run(batch)
        self._warm_ups[phase] += 1
        if self._possible and self._warm_ups[phase] == WARM_UP_STEPS:
            obstacle = self._step.find_obstacle(batch)
            if obstacle is not None:
                self._possible = False
                self._notify(f"the step cannot be captured as a CUDA graph: {obstacle}")

    def _capture(self, phase: int, batch: Batch) -> None:
        self._before_capture()
        if self._inputs is None:
            self._inputs = batch
        inputs = self._inputs
        try:
            self._replays[phase] = self._capturer.capture(lambda: self._step.run(inputs))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            problem = str(error).splitlines()[0]
            raise CrkdError(
                f"capturing the step as a CUDA graph failed ({problem}); rerun the same command "
                "with --set train.graphs=false to resume without graphs"
            ) from error

    def _replay(self, phase: int, batch: Batch) -> None:
        assert self._inputs is not None
        if batch is not self._inputs:
            for target, source in zip(self._inputs.tensors(), batch.tensors(), strict=True):
                target.copy_(source)
        self._replays[phase]()
