"""The loop: one for every method, in 2D and 3D, on CPU and GPU."""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from crkd_cli import world
from crkd_cli.data.store import Store
from crkd_cli.data.stream import Prefetch
from crkd_cli.errors import CrkdError, UsageError, pluralize
from crkd_cli.methods.base import Method
from crkd_cli.progress import Notify
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from crkd_cli.runtime.device import describe
from crkd_cli.runtime.distributed import Agreement, data_parallel, is_lost_process
from crkd_cli.runtime.metrics_log import MetricsLog, read_log
from crkd_cli.runtime.user_method import attribute_errors, check_losses
from crkd_cli.schedules import multistep, poly
from crkd_cli.training.batch_norm import BatchNormRecalibration
from crkd_cli.training.batches import BatchLoader, step_seed
from crkd_cli.training.monitor import TrainingMonitor, label_shares
from crkd_cli.training.optimizer import GuardedOptimizer
from crkd_cli.training.validator import ValidationScore, Validator

MAX_NONFINITE_STEPS = 10  # steps in a row with a non-finite loss or gradient that end a run


class Stopped(CrkdError):
    """A signal ended the run after a step, with everything saved."""

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name} after step {step}; everything is saved: the same command goes on"
        )
        self.exit_code = 128 + number


class ProcessLost(CrkdError):
    """Another process of the run ended."""

    def __init__(self, last: Path) -> None:
        saved = (
            f"{last} of step {load_checkpoint(last).step} is intact"
            if last.exists()
            else "nothing was saved yet"
        )
        super().__init__(f"another process of this run ended; {saved}: the same command goes on")


@dataclass
class Run:
    """The parts of a run, put together in engine/start.py."""

    checkpoint: Checkpoint  # where the run stands; its path is last.pth
    method: Method  # on the device
    optimizer: GuardedOptimizer
    loader: BatchLoader
    store: Store
    val: list[str]  # validation cases; none: the last checkpoint is the result
    stop: int  # the step to stop after: train.steps, or an earlier one
    device: torch.device
    precision: torch.dtype
    lock: FileLock | None  # of the run folder, held by process 0 until the run ends
    signal: int = 0  # one that came in the last step: the run is whole, but nothing may follow


StepCallback = Callable[[int, dict[str, float]], None]


def train(
    run: Run, report: StepCallback, warn: Notify | None = None, notify: Notify | None = None
) -> dict[str, Any]:
    """Runs from where the checkpoint stands to step `run.stop`; gives the content of metrics.json.

    `report(step, values)` is told after every step; values is empty but where the run is logged. `warn(line)` is told of signs
    that the run goes wrong, each once; `say(line)` of the rest. Raises Stopped on SIGTERM, SIGINT and SIGUSR1, but in the last
    step, after which the run knows of it; and CrkdError after ten non-finite steps in a row; the last good checkpoint is on disk
    in either case. Of several processes, which stop together, the first one alone validates and writes. Raises Lost if another
    one ended.
    """
    config = run.checkpoint.config.train
    folder = run.checkpoint.path.parent
    journal = (
        MetricsLog(folder, run.checkpoint.step, tensorboard=config.tensorboard)
        if world.rank() == 0
        else None
    )
    recalibration = (
        BatchNormRecalibration(run.loader, run.precision)
        if run.loader.unlabeled and config.recalibrate_batch_norm
        else None
    )
    validator = None
    if run.val and journal:
        blank = replace(run.checkpoint, training=None)
        validator = Validator(
            run.method, run.store, run.val, blank, run.device, run.precision, recalibration
        )
    loop = _Loop(run, journal, validator, recalibration, report, warn, notify)
    agree = Agreement()
    prefetch = Prefetch(run.loader.read, run.checkpoint.step, run.stop)
    with _Signals() as signals:
        try:
            for step, raws in zip(
                range(run.checkpoint.step, run.stop), loop.timed(prefetch), strict=True
            ):
                loop.step(step, raws)
                stop = agree(
                    signals.received or 0
                )  # read once: what comes later waits for the next step
                loop.housekeep(step + 1, stop=stop > 0)
                if stop and step + 1 < run.stop:
                    agree.barrier()  # process 0 has saved before any process ends
                    raise Stopped(stop, step + 1)
            run.signal = max(agree(signals.received or 0), agree.finish())
        except RuntimeError as error:
            if not is_lost_process(error):
                raise
            raise ProcessLost(run.checkpoint.path) from None
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # torch's words
                raise
            raise UsageError(
                "batch norm gets a single value from one image whose data.frame is 16 on every side; use a larger frame, or 2 "
                "images or more for every process: --set data.labeled_batch_size=2 --set data.unlabeled_batch_size=2"
            ) from None
        finally:
            prefetch.close()
            if validator:
                validator.close()
            if journal:
                journal.close()
            if run.lock:
                run.lock.release()
    return loop.summary()


class _Loop:
    def __init__(
        self,
        run: Run,
        journal: MetricsLog | None,
        validator: Validator | None,
        recalibration: BatchNormRecalibration | None,
        report: StepCallback,
        warn: Notify | None,
        notify: Notify | None,
    ) -> None:
        self.run, self.journal, self.validator, self.recalibration = (
            run,
            journal,
            validator,
            recalibration,
        )
        self.report, self.warn, self.notify = report, warn, notify
        self.config = run.checkpoint.config.train
        at = run.method.restore_best_after
        self.restore_after = (
            at if at < self.config.steps else 0
        )  # at the very end nothing would follow
        self.losses = data_parallel(run.method)
        self.seen: dict[
            str, list[Tensor]
        ] = {}  # scalars of the steps since the last log line, on the device
        self.counted = 0
        self.begin = self.saved = self.logged = time.monotonic()
        self.waited = self.waited_total = 0.0
        self.last: dict[str, float] = {}
        self.dice: dict[str, float] = {}
        checkpoint = run.checkpoint
        self.classes = len(checkpoint.spec.classes)
        self.watch = TrainingMonitor(
            checkpoint.spec.classes,
            self.config.steps,
            read_log(checkpoint.path.parent) if journal else (),
        )

    def timed(self, prefetch: Prefetch[Any]) -> Any:
        """The prefetched items, with the time spent waiting for them counted."""
        items = iter(prefetch)
        while True:
            begin = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            self.waited += time.monotonic() - begin
            yield item

    def step(self, step: int, raws: Any) -> None:
        """One batch and the method's updates on it. No host synchronization."""
        run = self.run
        batch = run.loader.batch(raws, step)
        # Dropout, CutMix and sampling are a function of the step too. The processes' draws differ.
        torch.manual_seed(step_seed(self.config.seed, step) + world.rank())
        for _ in range(run.method.updates):
            run.optimizer.remember()  # here, for after_step moves a teacher's statistics
            bf16 = torch.autocast(
                run.device.type, torch.bfloat16, enabled=run.precision == torch.bfloat16
            )
            with bf16, attribute_errors(type(run.method)):
                losses = check_losses(self.losses(batch, step), type(run.method))
            torch.autograd.backward(losses["total"])
            norm = run.optimizer.step(losses["total"], self.rate(step))
            truth = label_shares(batch.labeled.label, self.classes) if "share_1" in losses else {}
            for name, value in {**losses, **truth, "grad_norm": norm}.items():
                self.seen.setdefault(name, []).append(value.detach())
        with attribute_errors(type(run.method)):
            run.method.after_step(step)
        self.counted += 1

    def rate(self, step: int) -> float:
        """The learning rate of `step`."""
        config = self.config
        if config.lr_schedule == "poly":
            return config.lr * poly(step, config.lr_horizon * config.steps, config.lr_power)
        if config.lr_schedule == "step":
            return config.lr * multistep(step, config.steps, config.lr_milestones)
        return config.lr

    def housekeep(self, done: int, *, stop: bool) -> None:
        """What happens between steps, after `done` of them: log, validate, save."""
        finished = done == self.run.stop
        if done % self.config.log_every == 0 or finished or stop:
            self.log(done)
        else:
            self.report(done, {})
        if self.validator and self.validator.ready():
            self.note(self.validator.finish())
        # A score where a run stops early must not decide what is restored when it goes on: without the stop there is none.
        due = done % self.config.eval_every == 0 or (finished and done > self.restore_after)
        if self.validator and due:
            self.note(self.validator.finish())
            self.validator.start(
                self.run.method,
                done,
                self.run.optimizer.state_dict() if self.restore_after else None,
            )
        restore = done == self.restore_after
        if restore:
            self.restore_best(done)
        if stop and not finished:
            self.save(
                done, renew=False
            )  # first what resuming needs: whoever sent the signal may not wait long
        # What was restored is saved at once: best.pth may soon be of a later step.
        if (
            finished
            or stop
            or restore
            or time.monotonic() - self.saved >= 60.0 * self.config.save_minutes
        ):
            self.save(done, renew=True)

    def log(self, done: int) -> None:
        """Reads the means from the device, writes one line, and looks at the count of non-finite steps."""
        if not self.counted:
            return
        optimizer = self.run.optimizer
        limit = min(MAX_NONFINITE_STEPS, self.run.stop)
        if optimizer.worst_streak() >= limit * self.run.method.updates:
            raise CrkdError(self.diverged(limit, done))
        now = time.monotonic()
        means = world.all_mean(
            torch.stack(
                [_finite_mean(torch.stack(values).float()) for values in self.seen.values()]
            )
        )
        self.last = dict(zip(self.seen, means.tolist(), strict=True))
        seconds = max(now - self.logged, 1e-9)
        rates = {"steps_per_second": self.counted / seconds, "waiting": self.waited / seconds}
        values = {**self.last, **rates, "skipped": float(optimizer.skipped())}
        self.write(done, values)
        self.report(done, {**values, **self.dice})
        self.waited_total += self.waited
        self.seen, self.counted, self.logged, self.waited = {}, 0, now, 0.0

    def diverged(self, steps: int, done: int) -> str:
        """Why a run ends whose loss was not finite in so many steps."""
        last = self.run.checkpoint.path
        saved = f"{last} is the last good state" if last.exists() else "nothing was saved yet"
        names = ", ".join(name for name, values in self.seen.items() if not values[-1].isfinite())
        precise = "" if self.run.precision == torch.float32 else "--set train.precision=fp32, or "
        return (
            f"the loss was not finite in {pluralize(steps, 'step')} in a row before step {done} ({names}); {saved}. "
            f"Try {precise}a smaller --set train.lr=, in another run folder (--out)"
        )

    def note(self, score: ValidationScore | None) -> None:
        if score is not None:
            self.dice = {f"val/{name}": value for name, value in score.dice.items()}
            self.write(score.step, self.dice)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.journal:
            self.journal.write(step, values)
            for warning in self.watch(step, values):
                if self.warn:
                    self.warn(warning)

    def restore_best(self, done: int) -> None:
        """Goes on from best.pth, if a state was validated. Several processes read it from the disk that they share."""
        if self.validator:
            self.note(self.validator.finish())
        known = self.validator.best if self.validator else None
        if not world.broadcast(torch.tensor(int(known is not None))):  # process 0 alone validates
            return
        best = load_checkpoint(self.run.checkpoint.path.with_name("best.pth"))
        if best.training is None:
            raise CrkdError(
                f"{best.path} lacks the optimizer's state: it is of an older version; give another folder with --out"
            )
        self.run.method.load_state_dict(best.weights)
        self.run.optimizer.load_state_dict(best.training)
        self.write(done, {"restored_step": float(best.step)})
        if self.notify:
            self.notify(
                f"step {done}: goes on from step {best.step}, the best so far on the validation cases"
            )

    def save(self, done: int, *, renew: bool) -> None:
        """last.pth, by process 0; a running validation ends first, so that the checkpoint knows the best one.

        `renew`: with the statistics that the predictor is to use, which take some forward passes.
        """
        if world.rank():
            return
        if self.validator:
            self.note(self.validator.finish())
        training = self.run.optimizer.state_dict()
        if done == self.run.stop:
            training["metrics"] = (
                self.summary()
            )  # a run that is killed before it writes metrics.json has them here
        state = replace(
            self.run.checkpoint,
            step=done,
            weights=self.run.method.state_dict(),
            training=training,
            best=self.validator.best if self.validator else None,
            statistics=self.recalibration.statistics(self.run.method.predictor)
            if self.recalibration and renew
            else None,
        )
        save_checkpoint(state, state.path)
        self.saved = time.monotonic()

    def summary(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.begin
        steps = self.run.stop - self.run.checkpoint.step
        return {
            "steps": self.run.stop,
            "seconds": round(seconds, 1),
            "steps_per_second": round(steps / seconds, 3) if seconds else 0.0,
            "waiting": round(self.waited_total / seconds, 4) if seconds else 0.0,
            "skipped": self.run.optimizer.skipped(),
            "last": {
                name: value if math.isfinite(value) else None for name, value in self.last.items()
            },
            "best": self.validator.best if self.validator else None,
            "device": describe(self.run.device, self.run.precision),
        }


def _finite_mean(values: Tensor) -> Tensor:
    """values [N] → the mean of those that are finite; NaN if none is."""
    return values.masked_fill(~values.isfinite(), math.nan).nanmean()


class _Signals:
    """Remembers SIGTERM, SIGINT and SIGUSR1 for the end of the step; a second one acts as usual.

    Not where there are several processes: torchrun passes on a signal that a terminal has sent to all of them already.
    """

    received: int | None = None

    def __enter__(self) -> "_Signals":
        self._before = {
            n: signal.signal(n, self._receive)
            for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        }
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if world.size() == 1:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        self._restore()
