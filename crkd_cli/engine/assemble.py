"""Where configuration, store and split become the parts of a run."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crkd_cli import world
from crkd_cli.augment.policy import Policy
from crkd_cli.config import Config, dump, parse
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.data.case import Spec, Store
from crkd_cli.data.dataset import Dataset
from crkd_cli.data.splits import Split
from crkd_cli.data.stream import Stream
from crkd_cli.engine.checkpoint import Checkpoint, Own
from crkd_cli.engine.distributed import check_batch
from crkd_cli.engine.foreign import blamed, declared
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, Task

Raw = tuple[Tensor, Tensor | None]
# Bytes of each part's resized items that the processes of a run keep in memory: to read them anew in every epoch holds up a GPU.
KEPT = 2**30


@dataclass(frozen=True)
class Data:
    """The streams of a run and how their items become batches on the device."""

    labeled: Stream
    unlabeled: tuple[Stream, ...]    # as many as the method asks for: none, its images, its images and their mixing partners
    policy: Policy
    strong_views: int
    seed: int
    device: torch.device

    def read(self, step: int) -> list[Raw]:
        """This process's items of `step`, on the host, in pinned memory where a GPU will fetch them."""
        return [self._pin(stream.batch(step)) for stream in (self.labeled, *self.unlabeled)]

    def batch(self, raws: list[Raw], step: int) -> Batch:
        """Uploads and augments what `read` gave; the augmentation depends on (seed, step) only."""
        generator = torch.Generator().manual_seed(step_seed(self.seed, step))
        image, label = self._upload(raws[0])
        image, label = self.policy.weak(image, label, generator)
        if label is None:
            raise ValueError("the labelled stream has no labels")
        return Batch(Labeled(self._dense(image), label.long()), *[self._views(raw, generator) for raw in raws[1:]])

    def plain(self, raw: Raw) -> Tensor:
        """The images [B, C, *S] of `raw` on the device, not augmented."""
        return self._dense(self._upload(raw)[0])

    def _views(self, raw: Raw, generator: torch.Generator) -> Unlabeled:
        weak, _ = self.policy.weak(self._upload(raw)[0], None, generator)
        strong = tuple(self._dense(self.policy.strong(weak, generator)) for _ in range(self.strong_views))
        return Unlabeled(self._dense(weak), strong)

    def _pin(self, raw: Raw) -> Raw:
        if self.device.type != "cuda":
            return raw
        return raw[0].pin_memory(), None if raw[1] is None else raw[1].pin_memory()

    def _upload(self, raw: Raw) -> Raw:
        image, label = (None if t is None else t.to(self.device, non_blocking=True) for t in raw)
        if image is None:
            raise ValueError("a batch without images")
        return image.float() / 255.0 if image.dtype == torch.uint8 else image, label

    @staticmethod
    def _dense(image: Tensor) -> Tensor:
        return image.contiguous(memory_format=channels_last(image.ndim - 2))


def channels_last(dims: int) -> torch.memory_format:
    """The layout that convolutions run fastest in."""
    return (torch.channels_last, torch.channels_last_3d)[dims - 2]


def step_seed(seed: int, step: int) -> int:
    """A seed of its own for every step of every run: seeds that differ in the run or the step give unrelated draws."""
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1B54A32D192ED03) % 2**63


def build_method(config: Config, spec: Spec) -> Method:
    """The method with freshly initialised networks, the same for the same seed. Raises UsageError."""
    kind = METHODS[config.method]
    params = parse(config.methods.get(config.method, {}), kind.Params, f"methods.{config.method}")
    parse(dump(params), kind.Params, f"methods.{config.method}")    # which looks at the defaults too
    for name in config.methods:
        METHODS[name]
    task = _task(config, spec)
    torch.manual_seed(config.train.seed)
    with blamed(declared(kind)):
        return kind(task, params).to(memory_format=channels_last(task.dims))    # type: ignore[call-overload, no-any-return]


def load_method(checkpoint: Checkpoint) -> Method:
    """The method as it was trained. Raises CrkdError if the weights are not this method's."""
    method = build_method(checkpoint.config, checkpoint.spec)
    _restore(method, checkpoint.weights, checkpoint.path)
    return method


def load_predictor(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """image [B, C, *S] float (8-bit images divided by 255) → logits [B, K, *S], in evaluation mode on `device`."""
    if checkpoint.own is None:
        network = load_method(checkpoint).predictor
        _renew(network, checkpoint)
        return network.to(device).eval()
    prefix = f"{checkpoint.own.predictor}."
    weights = {name.removeprefix(prefix): value for name, value in checkpoint.weights.items() if name.startswith(prefix)}
    task = _task(checkpoint.config, checkpoint.spec)
    network = task.network().to(memory_format=channels_last(task.dims))    # type: ignore[call-overload]
    _restore(network, weights, checkpoint.path)
    _renew(network, checkpoint)
    return network.to(device).eval()    # type: ignore[no-any-return]


def _renew(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Give the predictor the statistics that the checkpoint keeps for it."""
    if checkpoint.statistics is not None:
        _restore(network, {**network.state_dict(), **checkpoint.statistics}, checkpoint.path)


def own(name: str, method: Method) -> Own | None:
    """What a checkpoint records of a method from the user's own file; None for an installed one.

    Raises UsageError if what predicts is no network of the package, for then nothing could predict without the file.
    """
    digest = own_digest(name)
    if digest is None:
        return None
    with torch.device("meta"):
        plain = repr(method.task.network())
    found = [place for place, module in method.named_modules() if module is method.predictor and repr(module) == plain]
    if not found:
        raise UsageError(
            f"method {name} predicts with another network than self.task.network() makes, which only a method of an installed "
            "package can; see docs/adding-a-method.md"
        )
    return Own(sha256=digest, predictor=found[0])


def own_digest(name: str) -> str | None:
    """SHA-256 of the user's own file that method `name` is from; None for an installed one."""
    source = METHODS.source(name)
    return None if source is None else sha256(source).hexdigest()


def _task(config: Config, spec: Spec) -> Task:
    return Task(config.model, config.data.frame.dims, spec.channels, len(spec.classes), config.train.steps)


def _restore(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        what = str(error).splitlines()[0]
        raise CrkdError(f"{path} does not fit its own configuration ({what}); it is damaged") from None


def build_data(config: Config, store: Store, split: Split, kind: type[Method], device: torch.device) -> Data:
    """The streams of the split's training parts. Raises CrkdError if a part is empty or missing in the store, and UsageError if
    several processes cannot share the batches evenly.
    """
    check_batch("data.labeled", config.data.labeled)
    frame, seed = config.data.frame, config.train.seed
    keep = KEPT // world.size() if device.type == "cuda" else 0
    labeled = Dataset(store, split.cases(store, "labeled"), frame, labeled=True, keep=keep)
    if not len(labeled):
        raise CrkdError(f"split {split.name} has no labelled training case; run: crkd make-splits {store.spec.name}")
    unlabeled: tuple[Stream, ...] = ()
    if kind.unlabeled_streams:
        check_batch("data.unlabeled", config.data.unlabeled)
        items = Dataset(store, split.cases(store, "unlabeled"), frame, labeled=False, keep=keep)
        if not len(items):
            raise CrkdError(
                f"split {split.name} has no unlabelled training case, and method {config.method} needs them; "
                "add images without labels, label fewer (crkd make-splits --labeled N), or use --method supervised"
            )
        unlabeled = tuple(Stream(items, config.data.unlabeled, seed, 1 + n) for n in range(kind.unlabeled_streams))
    policy = Policy(
        modality=store.spec.modality,
        bounded=store.spec.intensity != "zscore",
        dims=frame.dims,
        plane=(1, 2) if frame.dims == 3 and not store.spec.z_last else (0, 1),
    )
    return Data(Stream(labeled, config.data.labeled, seed, 0), unlabeled, policy, kind.strong_views, seed, device)


def default_config(store: Store, packaged: Path) -> Path:
    """The packaged configuration of the store's data set, else the one for own data."""
    own = packaged / f"{store.spec.name}.yaml"
    if own.is_file():
        return own
    dims = store.spec.dims if not _is_stack(store) else 2
    return packaged / f"custom{dims}d.yaml"


def _is_stack(store: Store) -> bool:
    """Whether volumes are stacks, better segmented slice by slice: slices ≥ 3 × as thick as pixels are wide, or fewer than 16."""
    if store.spec.dims == 2:
        return False
    spacings: list[Any] = [case.spacing_mm for case in store.index.cases if case.spacing_mm]
    thick = sum(s[0] >= 3 * max(s[1:]) for s in spacings) * 2 > len(store.cases)
    return thick or sum(case.shape[0] < 16 for case in store.index.cases) * 2 > len(store.cases)
