"""CRKD as its authors describe it, written plainly: the slow baseline, and an oracle for tests.

Each stream has its own fp32 forward pass, every pixel is projected to 256 channels before 256 of
them are drawn, windows are predicted one by one and summed on the host, and medpy computes the
scores. Networks, batches and CutMix are those of the package, and tests check the results.

Letters: B batch, K classes, F features, P projected channels, *S two or three spatial axes.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from crkd_cli.augment.mix import draw_swap, swap
from crkd_cli.methods.base import Task, require_unlabeled
from crkd_cli.models.networks.base import Network
from crkd_cli.training.loop import Run

cross_entropy = partial(F.cross_entropy, reduction="none")
LAMBDAS = {"labeled": 1.0, "pseudo": 1.0, "pixel": 1.0, "entropy": 1.0}
LAMBDAS |= {"feature": 0.01, "semantic": 0.01}
WIDTH = 256  # P
# P-channel maps that autograd keeps: three layers, two norms and the result of three streams.
MAPS = 6 * 3

Array = NDArray[np.float32]
Terms = dict[str, Tensor]


def dense_bytes(images: int, size: Sequence[int]) -> int:
    """Return the fp32 memory that projecting every pixel of all streams keeps for the gradient."""
    return MAPS * WIDTH * 4 * images * int(np.prod(size))


class Published(nn.Module):
    """CRKD's training step. `dense`: project every pixel, as published, or only the drawn ones."""

    samples = 256

    def __init__(
        self,
        student: Network,
        task: Task,
        threshold: float,
        dropout: float = 0.5,
        dense: bool = True,
    ) -> None:
        super().__init__()
        self.student, self.dims, self.classes = student, task.dims, task.classes
        self.threshold, self.dropout, self.dense = threshold, dropout, dense
        conv = (nn.Conv2d, nn.Conv3d)[task.dims - 2]
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[task.dims - 2]
        layers: list[nn.Module] = []
        for channels in (student.features, WIDTH):
            layers += [conv(channels, WIDTH, 1), norm(WIDTH), nn.ReLU(inplace=True)]
        self.projection = nn.Sequential(*layers, conv(WIDTH, WIDTH, 1))

    def losses(self, image: Tensor, label: Tensor, weak: Tensor, strong: Tensor) -> Terms:
        """Return the terms for a labeled batch and two views of an unlabeled one, and "total"."""
        confidence, pseudo = self.pseudo_label(weak)
        partner, box = draw_swap(weak.shape, weak.device)
        unlabeled = (weak, strong, confidence, pseudo)
        weak, strong, confidence, pseudo = (swap(x, partner, box) for x in unlabeled)
        features_l = self.student.decode(self.student.encode(image))
        features_s = self.student.decode(self.student.encode(strong))
        drop = (F.dropout2d, F.dropout3d)[self.dims - 2]
        dropped = [drop(level, self.dropout) for level in self.student.encode(weak)]
        features_fp = self.student.decode(dropped)
        z_l, z_s, z_fp = (self.student.head(f) for f in (features_l, features_s, features_fp))

        keep = (confidence >= self.threshold).float()
        s_is_nearer = cross_entropy(z_s.detach(), pseudo) < cross_entropy(z_fp.detach(), pseudo)
        by_s, by_fp = s_is_nearer.float() * keep, (1.0 - s_is_nearer.float()) * keep
        everywhere = torch.ones_like(label)
        supervised = cross_entropy(z_l, label).mean() + dice_loss(z_l, label, everywhere)
        pixel_fp = masked_mean(kl_divergence(z_s.detach(), z_fp), by_s)
        pixel_s = masked_mean(kl_divergence(z_fp.detach(), z_s), by_fp)
        similar_fp = F.cosine_similarity(features_s.detach(), features_fp)
        similar_s = F.cosine_similarity(features_s, features_fp.detach())
        features = [features_l, features_s, features_fp]
        terms = {
            "labeled": 0.5 * supervised,
            "pseudo": 0.5 * (dice_loss(z_s, pseudo, keep) + dice_loss(z_fp, pseudo, keep)),
            "pixel": (pixel_fp + pixel_s) / self.classes,
            "feature": masked_mean(1.0 - similar_fp, by_s) + masked_mean(1.0 - similar_s, by_fp),
            "semantic": self.semantic(features, z_l, label, confidence, pseudo),
            "entropy": low_entropy(z_s, z_fp),
        }
        total = torch.stack([LAMBDAS[name] * term for name, term in terms.items()]).sum()
        return {"total": total, **terms}

    @torch.no_grad()
    def pseudo_label(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        """Return the confidence and the class [B, *S] of the network in evaluation mode."""
        training = self.student.training
        self.student.eval()
        confidence, pseudo = self.student(weak).softmax(1).max(1)
        self.student.train(training)
        return confidence, pseudo

    def semantic(
        self, features: list[Tensor], z_l: Tensor, label: Tensor, confidence: Tensor, pseudo: Tensor
    ) -> Tensor:
        """Return CSD. Class means are taken of projected pixels if `dense`, else of features."""
        if self.dense:
            features = [F.normalize(self.projection(f), dim=1) for f in features]
        predicted = z_l.argmax(1)
        confident = torch.zeros_like(pseudo, dtype=torch.bool)
        for k in pseudo.unique():
            confident |= (pseudo == k) & (confidence >= confidence[pseudo == k].mean())
        half = torch.rand(pseudo.shape, device=pseudo.device) < 0.5
        anchors, anchor_classes = self._draw(features[0], predicted, predicted == label)
        s, s_classes = self._draw(features[1], pseudo, confident & half)
        fp, fp_classes = self._draw(features[2], pseudo, confident & ~half)
        log_softmax = (anchors @ torch.cat([s, fp]).T).log_softmax(1)
        same = (anchor_classes.unsqueeze(1) == torch.cat([s_classes, fp_classes])).float()
        counted = same.sum(1) > 0
        if not counted.any():
            return log_softmax.sum() * 0.0
        return -((log_softmax * same).sum(1)[counted] / same.sum(1)[counted]).mean()

    def _draw(self, features: Tensor, classes: Tensor, eligible: Tensor) -> tuple[Tensor, Tensor]:
        """Draw `samples` / K pixels of each class, add its mean: projected [N, P], classes [N]."""
        rows = features.movedim(1, -1).flatten(0, -2)
        drawn, numbers = [rows[:0]], [classes.flatten()[:0]]
        for k in range(self.classes):
            share = self.samples // self.classes
            if k == self.classes - 1:
                share += self.samples % self.classes
            members = rows[((classes == k) & eligible).flatten()]
            if not len(members):
                continue
            if len(members) >= share:
                chosen = torch.randperm(len(members), device=rows.device)[:share]
            else:
                chosen = torch.randint(len(members), (share,), device=rows.device)
            drawn += [members[chosen], members.mean(0, keepdim=True)]
            numbers.append(torch.full((share + 1,), k, device=rows.device))
        samples = torch.cat(drawn)
        if not self.dense:
            grid = samples.T.reshape(1, samples.shape[1], -1, *[1] * (self.dims - 1))
            samples = F.normalize(self.projection(grid), dim=1).flatten(2)[0].T
        return samples, torch.cat(numbers)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` [B, *S] where `mask` is 1, or 0 if it is 0 everywhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def dice_loss(z: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the Dice loss over all classes and the pixels of `mask`."""
    p = z.softmax(1)
    truth = F.one_hot(target, z.shape[1]).movedim(-1, 1).float()
    loss = torch.zeros((), device=z.device)
    for k in range(z.shape[1]):
        overlap = (p[:, k] * truth[:, k] * mask).sum()
        sizes = (p[:, k] ** 2 * mask).sum() + (truth[:, k] ** 2 * mask).sum()
        loss = loss + 1.0 - (2.0 * overlap + 1e-5) / (sizes + 1e-5)
    return loss / z.shape[1]


def kl_divergence(z_teacher: Tensor, z_student: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) [B, *S] of two sets of logits [B, K, *S]."""
    log_p = z_student.log_softmax(1)
    return F.kl_div(log_p, z_teacher.softmax(1), reduction="none").sum(1)


def low_entropy(z_s: Tensor, z_fp: Tensor) -> Tensor:
    """Return LEC: both streams move to their mean, weighted by how certain each is at a pixel."""
    p, log_p = [z_s.softmax(1), z_fp.softmax(1)], [z_s.log_softmax(1), z_fp.log_softmax(1)]
    weights = []
    for q, log_q in zip(p, log_p, strict=True):
        weights.append(torch.exp((q * log_q).sum(1)) * q.max(1).values)
    shares = [weight / (weights[0] + weights[1]) for weight in weights]
    mixed = shares[0].unsqueeze(1) * p[0] + shares[1].unsqueeze(1) * p[1]
    log_mixed = mixed.clamp(min=1e-12).log()
    far = [(q * (log_q - log_mixed)).sum(1) for q, log_q in zip(p, log_p, strict=True)]
    return (shares[0] * far[0] + shares[1] * far[1]).mean()


@torch.no_grad()
def window_probabilities(
    network: nn.Module, image: Array, patch: Sequence[int], stride: Sequence[int], classes: int
) -> Array:
    """Return probabilities [K, *S] of `image` [*S], the mean over windows taken one by one."""
    missing = [max(p - s, 0) for s, p in zip(image.shape, patch, strict=True)]
    padded = np.pad(image, [(n // 2, n - n // 2) for n in missing])
    total = np.zeros((classes, *padded.shape), np.float32)
    windows = np.zeros(padded.shape, np.float32)
    starts = []
    for side, p, d in zip(padded.shape, patch, stride, strict=True):
        steps = -(-(side - p) // d) + 1
        starts.append([min(n * d, side - p) for n in range(steps)])
    for corner in product(*starts):
        window = tuple(slice(start, start + p) for start, p in zip(corner, patch, strict=True))
        x = torch.from_numpy(np.ascontiguousarray(padded[window]))[None, None]
        total[(slice(None), *window)] += network(x).softmax(1).numpy()[0]
        windows[window] += 1
    inside = [slice(n // 2, n // 2 + s) for n, s in zip(missing, image.shape, strict=True)]
    return (total / windows)[(slice(None), *inside)]


def medpy_scores(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> list[float]:
    """Return Dice, Jaccard, HD95 and ASD (in voxels) of two masks, each by its own medpy call."""
    from medpy.metric import binary

    metrics = (binary.dc, binary.jc, binary.hd95, binary.asd)
    return [float(metric(prediction, truth)) for metric in metrics]


def training_steps(run: Run, dense: bool) -> Iterator[float]:
    """Train the baseline on the batches of `run`; yield the loss after each step."""
    config, task = run.checkpoint.config, run.method.task
    method = Published(task.network(), task, config.methods["crkd"]["confidence"], dense=dense)
    parameters = method.to(run.device).train().parameters()
    optimizer = torch.optim.SGD(parameters, config.train.lr, momentum=0.9, weight_decay=1e-4)
    for number in count():
        batch = run.loader.batch(run.loader.read(number), number)
        labeled, views = batch.labeled, require_unlabeled(batch.unlabeled)
        losses = method.losses(labeled.image, labeled.label, views.weak, views.strong[0])
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        yield losses["total"].item()
