"""The training loop: one for every method, in 2D and 3D, on CPU and GPU."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from filelock import FileLock
from torch import Tensor

from crkd_cli import world
from crkd_cli.data.store import Store, StoreError
from crkd_cli.data.stream import Prefetch
from crkd_cli.errors import CrkdError, pluralize
from crkd_cli.locks import release
from crkd_cli.methods.base import Method
from crkd_cli.progress import Notify
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from crkd_cli.runtime.device import describe
from crkd_cli.runtime.distributed import Agreement
from crkd_cli.runtime.metrics_log import MetricsLog, read_log
from crkd_cli.training.batch_norm import BatchNormRecalibration
from crkd_cli.training.batches import BatchLoader, HostBatch
from crkd_cli.training.cuda_graphs import choose_runner
from crkd_cli.training.interruptions import SignalCatcher, StoppedBySignalError, explain_errors
from crkd_cli.training.monitor import TrainingMonitor
from crkd_cli.training.optimizer import GuardedOptimizer
from crkd_cli.training.step import TrainingStep
from crkd_cli.training.validator import ValidationScore, Validator

# Steps in a row with a non-finite loss or gradient after which a run ends.
MAX_NONFINITE_STEPS = 10

# Called with the number of steps done and the values of the log line, empty if there is none.
StepCallback = Callable[[int, dict[str, float]], None]


@dataclass
class Run:
    """The parts of a run, as training/start.py builds them."""

    checkpoint: Checkpoint  # the step to continue from; its path is last.pth
    method: Method  # on the device
    optimizer: GuardedOptimizer
    loader: BatchLoader
    store: Store
    val: list[str]  # validation cases; if there are none, the last checkpoint is the result
    stop: int  # the step to stop after: train.steps, or an earlier one
    device: torch.device
    precision: torch.dtype
    lock: FileLock | None = None  # of the run folder; process 0 holds it until the run ends
    signal: int = 0  # one that came in the last step: this run is done, but no other may follow


def train(
    run: Run,
    report: StepCallback,
    warn: Notify | None = None,
    notify: Notify | None = None,
    finish: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train from the step of the run's checkpoint to `run.stop`; return the metrics of the run.

    `report` is called after every step, `warn` once for each sign that the run goes wrong, and
    `notify` for everything else. `finish` is called with the metrics at the end, while the run
    folder is still locked. Several processes stop together; process 0 alone validates and writes.

    Raises StoppedBySignalError after SIGTERM or another of SIGNALS (one in the last step sets
    `run.signal` instead), ProcessLostError if another process ended, and CrkdError after ten
    non-finite steps in a row, or if the store is damaged or was replaced by other data. The last
    good checkpoint is on disk in each case.
    """
    trainer = _Trainer(run, report, warn, notify)
    with SignalCatcher() as signals, closing(trainer), explain_errors(run.checkpoint.path):
        try:
            trainer.train(signals)
        except StoreError as error:
            trainer.save_after(error)
        if finish is not None and world.rank() == 0:
            finish(trainer.metrics())
        run.signal = run.signal or signals.received
    return trainer.metrics()


class _Trainer:
    """Trains a run, and logs, validates and saves it between steps."""

    def __init__(
        self, run: Run, report: StepCallback, warn: Notify | None, notify: Notify | None
    ) -> None:
        checkpoint, config = run.checkpoint, run.checkpoint.config.train
        folder, is_writer = checkpoint.path.parent, world.rank() == 0
        self._run, self._config = run, config
        self._report = report
        self._warn, self._notify = warn or _ignore, notify or _ignore

        self._log: MetricsLog | None = None
        if is_writer:
            self._log = MetricsLog(
                folder, checkpoint.step, tensorboard=config.tensorboard, warn=self._warn
            )
        self._recalibration: BatchNormRecalibration | None = None
        if run.loader.unlabeled and config.recalibrate_batch_norm:
            self._recalibration = BatchNormRecalibration(run.loader, run.precision)
        self._validator: Validator | None = None
        if run.val and is_writer:
            self._validator = self._build_validator()
        earlier_lines = read_log(folder) if is_writer else []
        self._monitor = TrainingMonitor(checkpoint.spec.class_names, config.steps, earlier_lines)

        classes = len(checkpoint.spec.classes)
        self._step = TrainingStep(run.method, run.optimizer, config, classes, run.precision)
        self._stats = self._step.stats
        self._runner = choose_runner(
            self._step, config.graphs, self._notify, self._finish_validation
        )
        self._last_means: dict[str, float] = {}  # of the latest log line
        self._val_dice: dict[str, float] = {}  # of the latest validation
        self._done = self._saved = checkpoint.step  # steps
        self._begin = self._last_save = time.monotonic()
        # At the very end there would be no step left to train from the restored state.
        restore_after = run.method.restore_best_after
        self._restore_after = restore_after if restore_after < config.steps else 0
        self._prefetch = Prefetch(run.loader.read, checkpoint.step, run.stop)

    def train(self, signals: SignalCatcher) -> None:
        agree = Agreement()
        for step, items, waited in self._batches():
            self._train_step(step, items)
            self._stats.end_step(waited)
            self._done = step + 1
            # Read once: a signal that comes later is handled after the next step.
            stop = agree(signals.received)
            self._after_step(step + 1, stopped=stop > 0)
            if stop and step + 1 < self._run.stop:
                agree.barrier()  # process 0 has saved before any process ends
                raise StoppedBySignalError(stop, step + 1)
        self._run.signal = max(agree(signals.received), agree.finish())

    def save_after(self, error: StoreError) -> NoReturn:
        """Save the steps before the store was damaged or replaced, and raise the error."""
        last = self._run.checkpoint.path
        if world.rank() == 0 and self._done > self._saved:
            self._write_checkpoint(self._done, None)
        saved = f"; {last} contains the training until then" if last.is_file() else ""
        raise StoreError(
            f"{error}{saved}; to train on other data, give another folder with --out"
        ) from None

    def metrics(self) -> dict[str, Any]:
        """Return the content of metrics.json."""
        seconds = time.monotonic() - self._begin
        steps = self._run.stop - self._run.checkpoint.step
        last = {
            name: value if math.isfinite(value) else None
            for name, value in self._last_means.items()
        }
        return {
            "steps": self._run.stop,
            "seconds": round(seconds, 1),
            "steps_per_second": round(steps / seconds, 3) if seconds else 0.0,
            "waiting": round(self._stats.seconds_waited / seconds, 4) if seconds else 0.0,
            "skipped": self._run.optimizer.skipped(),
            "last": last,
            "best": self._best(),
            "device": describe(self._run.device, self._run.precision),
        }

    def close(self) -> None:
        """End the threads, close the files and release the run folder."""
        self._prefetch.close()
        if self._validator:
            self._validator.close()
        if self._log:
            self._log.close()
        if self._run.lock:
            release(self._run.lock)

    # Training

    def _batches(self) -> Iterator[tuple[int, list[HostBatch], float]]:
        """Yield (step, items of the step, seconds waited for them)."""
        begin = time.monotonic()
        for step, items in enumerate(self._prefetch, self._run.checkpoint.step):
            yield step, items, time.monotonic() - begin
            begin = time.monotonic()

    def _train_step(self, step: int, items: list[HostBatch]) -> None:
        """Train on one batch. Never makes the host wait for the device."""
        batch = self._run.loader.batch(items, step)
        self._step.prepare(step)
        self._runner.run(batch)

    # Between steps

    def _after_step(self, done: int, *, stopped: bool) -> None:
        """Do what is due after `done` steps: log, validate, restore, save."""
        finished = done == self._run.stop
        if done % self._config.log_every == 0 or finished or stopped:
            self._log_step(done)
        else:
            self._report(done, {})
        self._validate(done, finished=finished)
        restored = done == self._restore_after
        if restored:
            self._restore_best(done)
        if stopped and not finished:
            # First what resuming needs: whoever sent the signal may not wait long.
            self._save(done, recalibrate=False)
        # A restored state is saved at once: best.pth may soon be of a later step.
        if finished or stopped or restored or self._save_is_due():
            self._save(done, recalibrate=True)

    def _log_step(self, done: int) -> None:
        """Read the means from the device, write a log line, end a run that diverged."""
        optimizer = self._run.optimizer
        limit = min(MAX_NONFINITE_STEPS, self._run.stop)
        if optimizer.worst_streak() >= limit * self._run.method.updates:
            raise CrkdError(self._describe_divergence(limit, done))
        self._last_means, rates = self._stats.collect()
        values = {**self._last_means, **rates, "skipped": float(optimizer.skipped())}
        self._write(done, values)
        self._report(done, {**values, **self._val_dice})

    def _describe_divergence(self, steps: int, done: int) -> str:
        last = self._run.checkpoint.path
        saved = f"{last} is the last good state" if last.exists() else "nothing was saved yet"
        names = ", ".join(self._stats.nonfinite())
        remedy = "a smaller --set train.lr="
        if self._run.precision != torch.float32:
            remedy = f"--set train.precision=fp32, or {remedy}"
        return (
            f"the loss was not finite in {pluralize(steps, 'step')} in a row before step {done} "
            f"({names}); {saved}. Try {remedy}, in another run folder (--out)"
        )

    def _write(self, step: int, values: dict[str, float]) -> None:
        """Write a log line, and warn if it shows that the run goes wrong."""
        if self._log is None:
            return
        self._log.write(step, values)
        for warning in self._monitor(step, values):
            self._warn(warning)

    # Validation

    def _build_validator(self) -> Validator:
        run = self._run
        template = replace(run.checkpoint, training=None)
        return Validator(
            run.method,
            run.store,
            run.val,
            template,
            run.device,
            run.precision,
            self._recalibration,
        )

    def _validate(self, done: int, *, finished: bool) -> None:
        """Log a score that is ready, and start the validation that is due after `done` steps."""
        validator = self._validator
        if validator is None:
            return
        if validator.ready():
            self._finish_validation()
        # Where a run stops early, a score must not decide what is restored after it is resumed: a
        # run that does not stop there has no such score.
        due = done % self._config.eval_every == 0 or (finished and done > self._restore_after)
        if due:
            self._run.store.check_unchanged()
            self._finish_validation()
            training = self._run.optimizer.state_dict() if self._restore_after else None
            validator.start(self._run.method, done, training)

    def _finish_validation(self) -> None:
        """Wait for the running validation, if there is one, and log its score."""
        score: ValidationScore | None = self._validator.finish() if self._validator else None
        if score is not None:
            self._val_dice = {f"val/{name}": value for name, value in score.dice.items()}
            self._write(score.step, self._val_dice)

    def _best(self) -> dict[str, Any] | None:
        return self._validator.best if self._validator else None

    # Checkpoints

    def _restore_best(self, done: int) -> None:
        """Continue from best.pth if any state was validated; every process reads the file."""
        self._finish_validation()
        # Process 0 alone validates, and so knows whether there is a best state.
        if not world.broadcast(torch.tensor(int(self._best() is not None))):
            return
        best = load_checkpoint(self._run.checkpoint.path.with_name("best.pth"))
        if best.training is None:
            raise CrkdError(
                f"{best.path} lacks the optimizer's state because an older version wrote it; "
                "give another folder with --out"
            )
        self._run.method.load_state_dict(best.weights)
        self._run.optimizer.load_state_dict(best.training)
        self._write(done, {"restored_step": float(best.step)})
        self._notify(
            f"step {done}: restored step {best.step}, the best so far on the validation cases"
        )

    def _save_is_due(self) -> bool:
        return time.monotonic() - self._last_save >= 60.0 * self._config.save_minutes

    def _save(self, done: int, *, recalibrate: bool) -> None:
        """Write last.pth, in process 0.

        A running validation ends first, so that the checkpoint knows the best score. With
        `recalibrate`, the file includes the predictor's recalibrated batch norm statistics, which
        take some forward passes.
        """
        if world.rank() != 0:
            return
        self._finish_validation()
        statistics: dict[str, Tensor] | None = None
        if self._recalibration and recalibrate:
            statistics = self._recalibration.statistics(self._run.method.predictor)
        self._write_checkpoint(done, statistics)
        self._run.store.check_unchanged()

    def _write_checkpoint(self, done: int, statistics: dict[str, Tensor] | None) -> None:
        training = self._run.optimizer.state_dict()
        if done == self._run.stop:
            # For a run that is killed before it writes metrics.json.
            training["metrics"] = self.metrics()
        checkpoint = replace(
            self._run.checkpoint,
            step=done,
            weights=self._run.method.state_dict(),
            training=training,
            best=self._best(),
            statistics=statistics,
        )
        save_checkpoint(checkpoint, checkpoint.path)
        self._saved = done
        self._last_save = time.monotonic()


def _ignore(line: str) -> None:
    """Drop a message that nobody asked for."""
