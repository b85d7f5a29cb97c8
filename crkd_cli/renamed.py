"""Keys that have a new name: an old one, in a configuration or in `--set`, is refused with it."""

from collections.abc import Iterator
from typing import Any

# Old key → new key.
KEYS = {
    "data.labeled": "data.labeled_batch_size",
    "data.unlabeled": "data.unlabeled_batch_size",
    "train.schedule": "train.lr_schedule",
    "train.power": "train.lr_power",
    "train.horizon": "train.lr_horizon",
    "train.milestones": "train.lr_milestones",
    "train.predictor": "train.recalibrate_batch_norm",
    "methods.acmt.consistency": "methods.acmt.consistency_weight",
    "methods.acmt.doubt": "methods.acmt.entropy_threshold",
    "methods.acmt.doubt_end": "methods.acmt.final_entropy_threshold",
    "methods.acmt.ramp": "methods.acmt.rampup",
    "methods.acmt.teacher_decay": "methods.acmt.ema_decay",
    "methods.bcp.by_region": "methods.bcp.average_regions",
    "methods.bcp.epsilon": "methods.bcp.dice_smooth",
    "methods.bcp.largest": "methods.bcp.largest_component",
    "methods.bcp.pooled": "methods.bcp.batch_dice",
    "methods.bcp.pseudo": "methods.bcp.pseudo_weight",
    "methods.bcp.squared": "methods.bcp.squared_dice",
    "methods.bcp.teacher_decay": "methods.bcp.ema_decay",
    "methods.cps.consistency": "methods.cps.consistency_weight",
    "methods.cps.ramp": "methods.cps.rampup",
    "methods.crkd.dice": "methods.crkd.dice_classes",
    "methods.crkd.drop": "methods.crkd.feature_dropout",
    "methods.crkd.entropy": "methods.crkd.entropy_weight",
    "methods.crkd.feature": "methods.crkd.feature_weight",
    "methods.crkd.pixel": "methods.crkd.pixel_weight",
    "methods.crkd.pseudo": "methods.crkd.pseudo_weight",
    "methods.crkd.ramp": "methods.crkd.rampup",
    "methods.crkd.samples": "methods.crkd.contrast_samples",
    "methods.crkd.semantic": "methods.crkd.semantic_weight",
    "methods.crkd.teacher_decay": "methods.crkd.ema_decay",
    "methods.crkd.true_positives": "methods.crkd.true_positive_anchors",
    "methods.crossmatch.decoder": "methods.crossmatch.decoder_share",
    "methods.crossmatch.dice": "methods.crossmatch.dice_classes",
    "methods.crossmatch.distillation": "methods.crossmatch.distillation_weight",
    "methods.crossmatch.drop_strong": "methods.crossmatch.strong_dropout",
    "methods.crossmatch.drop_weak": "methods.crossmatch.weak_dropout",
    "methods.crossmatch.epsilon": "methods.crossmatch.dice_smooth",
    "methods.crossmatch.ramp": "methods.crossmatch.confidence_rampup",
    "methods.lefed.cross_entropy": "methods.lefed.cross_entropy_weight",
    "methods.lefed.feedback": "methods.lefed.feedback_scale",
    "methods.lefed.levels": "methods.lefed.feedback_levels",
    "methods.lefed.ramp": "methods.lefed.rampup",
    "methods.mean_teacher.consistency": "methods.mean_teacher.consistency_weight",
    "methods.mean_teacher.delay": "methods.mean_teacher.rampup_delay",
    "methods.mean_teacher.dice": "methods.mean_teacher.dice_classes",
    "methods.mean_teacher.ramp": "methods.mean_teacher.rampup",
    "methods.mean_teacher.teacher_decay": "methods.mean_teacher.ema_decay",
    "methods.mlrpl.consistency": "methods.mlrpl.consistency_weight",
    "methods.mlrpl.dropped": "methods.mlrpl.dropped_features",
    "methods.mlrpl.labeled": "methods.mlrpl.labeled_weight",
    "methods.mlrpl.on_labeled": "methods.mlrpl.mutual_on_labeled",
    "methods.mlrpl.predicted_class": "methods.mlrpl.predicted_class_only",
    "methods.mlrpl.ramp": "methods.mlrpl.rampup",
    "methods.supervised.dice": "methods.supervised.dice_classes",
    "methods.ua_mt.consistency": "methods.ua_mt.consistency_weight",
    "methods.ua_mt.dice": "methods.ua_mt.dice_classes",
    "methods.ua_mt.ramp": "methods.ua_mt.rampup",
    "methods.ua_mt.teacher_decay": "methods.ua_mt.ema_decay",
    "methods.unimatch.dice": "methods.unimatch.dice_classes",
    "methods.unimatch.drop": "methods.unimatch.feature_dropout",
}


def old_keys(tree: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of a configuration tree that have a new name, as dotted paths."""
    for key in KEYS:
        section, leaf = _locate(tree, key)
        if section is not None and leaf in section:
            yield key


def _locate(tree: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """Find the section of `tree` that would hold `key`: (section or None, last part of the key)."""
    *parents, leaf = key.split(".")
    node: Any = tree
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else None), leaf
