"""Loss and metrics of binary segmentation."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

_SMOOTHING = 1.0  # pixels added to both sides of the Dice ratio, so that it is defined for an image without a crack


def example_losses(logits_b1hw: Tensor, masks_b1hw: Tensor, positive_weight: float) -> Tensor:
    """Binary cross-entropy (mean over the pixels, crack pixels weighted) plus one minus the soft Dice coefficient, per image.

    Dice is taken per image, not over the batch: its mean over examples does not depend on how a batch is spread over workers.

    Returns:
        Float32 (B,).
    """
    logits, masks = logits_b1hw.float().flatten(1), masks_b1hw.float().flatten(1)
    weight = logits.new_tensor(positive_weight)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, masks, pos_weight=weight, reduction="none").mean(1)
    crack = logits.sigmoid()
    dice = (2 * (crack * masks).sum(1) + _SMOOTHING) / (crack.sum(1) + masks.sum(1) + _SMOOTHING)
    return cross_entropy + 1 - dice


def segmentation_sums(logits_b1hw: Tensor, masks_b1hw: Tensor, losses_b: Tensor) -> dict[str, float]:
    """What `segmentation_metrics` needs, summed over a batch. A pixel counts as crack above a probability of one half."""
    crack, truth = logits_b1hw > 0, masks_b1hw > 0.5
    counts = torch.stack([(crack & truth).sum(), (crack & ~truth).sum(), (~crack & truth).sum()]).tolist()
    true_positive, false_positive, false_negative = map(float, counts)
    return {
        "true_positive": true_positive,
        "false_positive": false_positive,
        "false_negative": false_negative,
        "pixels": float(truth.numel()),
        "loss": float(losses_b.sum()),
        "examples": float(len(losses_b)),
    }


def segmentation_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics over all pixels of a set.

    Returns:
        f1 and iou of the crack class (0 where nothing is crack and nothing was predicted); loss, the mean over examples; constant_f1, the
        F1 of the better of the two models that predict the same everywhere: "all crack" with precision P / pixels and recall 1, that is
        2P / (P + pixels) for P crack pixels; "no crack" has 0.
    """
    true_positive = sums["true_positive"]
    wrong = sums["false_positive"] + sums["false_negative"]
    positives = true_positive + sums["false_negative"]
    return {
        "f1": _ratio(2 * true_positive, 2 * true_positive + wrong),
        "iou": _ratio(true_positive, true_positive + wrong),
        "loss": _ratio(sums["loss"], sums["examples"]),
        "constant_f1": _ratio(2 * positives, positives + sums["pixels"]),
    }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
