"""The published way of working, written plainly from its description: the baseline that `benchmarks/run.py` compares with.

One fp32 forward pass per stream, one sample at a time through the augmentation (`published_augment.py`), every pixel
projected to 256 channels before 256 of them are drawn, windows one by one with the sum on the host, medpy. The networks are
the package's own, so both sides compute the same function; tests/test_benchmarks.py holds the two equal.

Letters: B batch, K classes, F features, P projected channels, *S two or three spatial axes.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from crkd_cli.models.networks.base import Network

LAMBDAS = {
    "labeled": 1.0,
    "pseudo": 1.0,
    "pixel": 1.0,
    "feature": 0.01,
    "semantic": 0.01,
    "entropy": 1.0,
}
WIDTH = 256  # P
STREAMS = 3  # projected in a step: labeled, strong, perturbed
MAPS = 6  # P-channel maps that autograd keeps per stream: three layers, two norms, the unit-length result


def dense_bytes(images: int, size: Sequence[int]) -> int:
    """Memory that the projection of every pixel keeps for the backward pass, with `images` per stream, in fp32.

    112×112×80 voxels, 2 images: 12.3 GB per stream, 37 GB in all. 256×256 pixels, 12 images: 14.5 GB.
    """
    return STREAMS * MAPS * WIDTH * 4 * images * int(np.prod(size))


class Published(nn.Module):
    """CRKD's training step. `dense`: project every pixel, then draw, as published; else draw first, which takes less memory."""

    def __init__(
        self,
        student: Network,
        dims: int,
        classes: int,
        threshold: float,
        drop: float = 0.5,
        samples: int = 256,
        dense: bool = True,
    ) -> None:
        super().__init__()
        self.student, self.dims, self.classes, self.threshold = student, dims, classes, threshold
        self.drop, self.samples, self.dense = drop, samples, dense
        self.random = np.random.default_rng(0)
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2]
        self.projection = nn.Sequential(
            conv(student.features, WIDTH, 1),
            norm(WIDTH),
            nn.ReLU(inplace=True),
            conv(WIDTH, WIDTH, 1),
            norm(WIDTH),
            nn.ReLU(inplace=True),
            conv(WIDTH, WIDTH, 1),
        )

    def losses(
        self, image: Tensor, label: Tensor, weak: Tensor, strong: Tensor
    ) -> dict[str, Tensor]:
        """Scalars by name of a labeled batch and two views of an unlabeled one; "total" is back-propagated."""
        confidence, pseudo = self.teach(weak)
        weak, strong, confidence, pseudo = cutmix([weak, strong, confidence, pseudo], self.random)
        return self.student_losses(image, label, weak, strong, confidence, pseudo)

    @torch.no_grad()
    def teach(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        """Confidence and pseudo-label [B, *S] of the network in evaluation mode."""
        training = self.student.training
        self.student.eval()
        confidence, pseudo = self.student(weak).softmax(1).max(1)
        self.student.train(training)
        return confidence, pseudo

    def student_losses(
        self,
        image: Tensor,
        label: Tensor,
        weak: Tensor,
        strong: Tensor,
        confidence: Tensor,
        pseudo: Tensor,
    ) -> dict[str, Tensor]:
        features_l = self.student.decode(self.student.encode(image))
        features_s = self.student.decode(self.student.encode(strong))
        dropout = (functional.dropout2d, functional.dropout3d)[self.dims - 2]
        features_fp = self.student.decode(
            [dropout(level, self.drop) for level in self.student.encode(weak)]
        )
        z_l, z_s, z_fp = (
            self.student.head(features) for features in (features_l, features_s, features_fp)
        )

        keep = (confidence >= self.threshold).float()
        nearer = error(z_s.detach(), pseudo) < error(z_fp.detach(), pseudo)
        by_s, by_fp = nearer.float() * keep, (1.0 - nearer.float()) * keep
        terms = {
            "labeled": 0.5 * (error(z_l, label).mean() + dice(z_l, label, torch.ones_like(label))),
            "pseudo": 0.5 * (dice(z_s, pseudo, keep) + dice(z_fp, pseudo, keep)),
            "pixel": (
                average(divergence(z_s.detach(), z_fp), by_s)
                + average(divergence(z_fp.detach(), z_s), by_fp)
            )
            / self.classes,
            "feature": average(
                1.0 - functional.cosine_similarity(features_s.detach(), features_fp), by_s
            )
            + average(1.0 - functional.cosine_similarity(features_s, features_fp.detach()), by_fp),
            "semantic": self.semantic(
                [features_l, features_s, features_fp], z_l, label, confidence, pseudo
            ),
            "entropy": low_entropy(z_s, z_fp),
        }
        total = torch.stack([LAMBDAS[name] * term for name, term in terms.items()]).sum()
        return {"total": total, **terms}

    def semantic(
        self, features: list[Tensor], z_l: Tensor, label: Tensor, confidence: Tensor, pseudo: Tensor
    ) -> Tensor:
        """CSD. The class mean is taken of projected pixels where all are projected, else of features."""
        if self.dense:
            features = [functional.normalize(self.projection(one), dim=1) for one in features]
        predicted = z_l.argmax(1)
        right = predicted == label
        sure = torch.zeros_like(pseudo, dtype=torch.bool)
        for k in pseudo.unique():
            sure |= (pseudo == k) & (confidence >= confidence[pseudo == k].mean())
        half = torch.rand(pseudo.shape, device=pseudo.device) < 0.5
        anchors, anchor_classes = self.draw(features[0], predicted, right)
        s, s_classes = self.draw(features[1], pseudo, sure & half)
        fp, fp_classes = self.draw(features[2], pseudo, sure & ~half)
        others, other_classes = torch.cat([s, fp]), torch.cat([s_classes, fp_classes])
        log_softmax = (anchors @ others.T).log_softmax(1)
        same = (anchor_classes.unsqueeze(1) == other_classes).float()
        counted = same.sum(1) > 0
        if not counted.any():
            return log_softmax.sum() * 0.0
        return -((log_softmax * same).sum(1)[counted] / same.sum(1)[counted]).mean()

    def draw(self, features: Tensor, classes: Tensor, eligible: Tensor) -> tuple[Tensor, Tensor]:
        """Projected samples [N, P] and their classes [N]: K-th part of `samples` a class, and every class's mean."""
        rows = features.movedim(1, -1).flatten(0, -2)
        drawn, numbers = [rows[:0]], [classes.flatten()[:0]]
        for k in range(self.classes):
            share = self.samples // self.classes + (
                self.samples % self.classes if k == self.classes - 1 else 0
            )
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
            samples = functional.normalize(self.projection(grid), dim=1).flatten(2)[0].T
        return samples, torch.cat(numbers)


def error(z: Tensor, target: Tensor) -> Tensor:
    """Cross entropy [B, *S] of logits [B, K, *S]."""
    return functional.cross_entropy(z, target, reduction="none")


def average(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of [B, *S] where mask is 1; 0 where it is nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def dice(z: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Dice loss over all classes and the pixels of mask, with one-hot targets."""
    p = z.softmax(1)
    truth = functional.one_hot(target, z.shape[1]).movedim(-1, 1).float()
    loss = torch.zeros((), device=z.device)
    for k in range(z.shape[1]):
        overlap = (p[:, k] * truth[:, k] * mask).sum()
        sizes = (p[:, k] ** 2 * mask).sum() + (truth[:, k] ** 2 * mask).sum()
        loss = loss + 1.0 - (2.0 * overlap + 1e-5) / (sizes + 1e-5)
    return loss / z.shape[1]


def divergence(z_teacher: Tensor, z_student: Tensor) -> Tensor:
    """KL(teacher ‖ student) [B, *S] of two logits [B, K, *S]."""
    return functional.kl_div(z_student.log_softmax(1), z_teacher.softmax(1), reduction="none").sum(
        1
    )


def low_entropy(z_s: Tensor, z_fp: Tensor) -> Tensor:
    """LEC: both streams towards their mean, weighted at every pixel by how sure each is."""
    p = [z_s.softmax(1), z_fp.softmax(1)]
    log_p = [z_s.log_softmax(1), z_fp.log_softmax(1)]
    weights = [
        torch.exp((q * log_q).sum(1)) * q.max(1).values for q, log_q in zip(p, log_p, strict=True)
    ]
    shares = [weight / (weights[0] + weights[1]) for weight in weights]
    mixed = shares[0].unsqueeze(1) * p[0] + shares[1].unsqueeze(1) * p[1]
    log_mixed = mixed.clamp(min=1e-12).log()
    far = [(q * (log_q - log_mixed)).sum(1) for q, log_q in zip(p, log_p, strict=True)]
    return (shares[0] * far[0] + shares[1] * far[1]).mean()


def cutmix(tensors: list[Tensor], draw: np.random.Generator) -> list[Tensor]:
    """Copies of [B, (C,) *S] tensors in which random pairs of samples have, half the time, swapped one random box."""
    tensors = [tensor.clone() for tensor in tensors]
    shape = tensors[0].shape[2:]
    order = draw.permutation(len(tensors[0]))
    for first, second in zip(order[0::2], order[1::2], strict=False):
        if draw.random() < 0.5:
            continue
        sides = np.full(len(shape), 2.0)
        while (sides > 1.0).any():
            fraction, aspect = draw.uniform(0.02, 0.4), draw.uniform(0.3, 1 / 0.3)
            sides = (fraction * np.array([1 / aspect, aspect, 1.0][: len(shape)])) ** (
                1 / len(shape)
            )
        lengths = (sides * shape).astype(int)
        starts = [
            draw.integers(0, side - length + 1) for side, length in zip(shape, lengths, strict=True)
        ]
        box = tuple(
            slice(start, start + length) for start, length in zip(starts, lengths, strict=True)
        )
        for tensor in tensors:
            kept = tensor[first][(..., *box)].clone()
            tensor[first][(..., *box)] = tensor[second][(..., *box)]
            tensor[second][(..., *box)] = kept
    return tensors


@torch.no_grad()
def window_probabilities(
    network: nn.Module,
    image: NDArray[np.float32],
    patch: Sequence[int],
    stride: Sequence[int],
    classes: int,
) -> NDArray[np.float32]:
    """Probabilities [K, *S] of image [*S]: window by window, every one copied to the host, added up and averaged there."""
    lacks = [max(p - s, 0) for s, p in zip(image.shape, patch, strict=True)]
    padded = np.pad(image, [(lack // 2, lack - lack // 2) for lack in lacks])
    total = np.zeros((classes, *padded.shape), np.float32)
    count = np.zeros(padded.shape, np.float32)
    device = next(network.parameters()).device
    steps = [-(-(s - p) // d) + 1 for s, p, d in zip(padded.shape, patch, stride, strict=True)]
    for corner in product(*(range(n) for n in steps)):
        starts = [
            min(n * d, s - p)
            for n, d, s, p in zip(corner, stride, padded.shape, patch, strict=True)
        ]
        window = tuple(slice(start, start + p) for start, p in zip(starts, patch, strict=True))
        x = torch.from_numpy(np.ascontiguousarray(padded[window]))[None, None].to(device)
        total[(slice(None), *window)] += network(x).softmax(1).cpu().numpy()[0]
        count[window] += 1
    back = tuple(
        slice(lack // 2, lack // 2 + side) for lack, side in zip(lacks, image.shape, strict=True)
    )
    return (total / count)[(slice(None), *back)]


def scores(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> tuple[float, float, float, float]:
    """Dice, Jaccard, HD95 and ASD of two non-empty masks in voxels, each by a medpy call of its own."""
    from medpy.metric import binary

    found = (binary.dc, binary.jc, binary.hd95, binary.asd)
    dice, jaccard, hd95, asd = (float(score(prediction, truth)) for score in found)
    return dice, jaccard, hd95, asd
