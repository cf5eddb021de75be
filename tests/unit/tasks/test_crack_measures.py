import math

import pytest
import torch

from fat_ray.tasks.crack.measures import example_losses, segmentation_metrics, segmentation_sums


def make_batch(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 1, 8, 8, generator=generator)
    masks = (torch.rand(count, 1, 8, 8, generator=generator) < 0.2).float()
    masks[0] = 0  # one image without a crack
    return logits, masks


def test_loss_equals_the_textbook_formulas_per_image() -> None:
    logits, masks = make_batch(3)
    losses = example_losses(logits, masks, 3.0).tolist()
    for loss, logit, mask in zip(losses, logits.flatten(1).tolist(), masks.flatten(1).tolist(), strict=True):
        crack = [1 / (1 + math.exp(-value)) for value in logit]
        terms = [-(3 * y * math.log(p) + (1 - y) * math.log(1 - p)) for p, y in zip(crack, mask, strict=True)]
        dice = (2 * sum(p * y for p, y in zip(crack, mask, strict=True)) + 1) / (sum(crack) + sum(mask) + 1)
        assert loss == pytest.approx(sum(terms) / 64 + 1 - dice, rel=1e-5)


def test_loss_of_an_image_without_a_crack_is_finite_and_vanishes_when_nothing_is_predicted() -> None:
    nothing = torch.full((1, 1, 8, 8), -30.0)
    assert example_losses(nothing, torch.zeros(1, 1, 8, 8), 2.0).item() == pytest.approx(0, abs=1e-5)
    assert math.isfinite(example_losses(-nothing, torch.zeros(1, 1, 8, 8), 2.0).item())


def test_loss_of_the_perfect_prediction_vanishes() -> None:
    _, masks = make_batch(2)
    assert example_losses(60 * masks - 30, masks, 2.0).tolist() == pytest.approx([0, 0], abs=1e-5)


def test_loss_does_not_depend_on_how_the_batch_is_spread() -> None:
    logits, masks = make_batch(8)
    whole = example_losses(logits, masks, 2.0).mean()
    shares = torch.stack([example_losses(logits[i : i + 4], masks[i : i + 4], 2.0).mean() for i in (0, 4)]).mean()
    assert shares.item() == pytest.approx(whole.item(), rel=1e-6)


def test_loss_is_float32_in_lower_precision() -> None:
    logits, masks = make_batch(2)
    assert example_losses(logits.bfloat16(), masks, 2.0).dtype == torch.float32


def metrics_of(logits: torch.Tensor, masks: torch.Tensor) -> dict[str, float]:
    return segmentation_metrics(segmentation_sums(logits, masks, torch.zeros(len(logits))))


def test_metrics_equal_brute_force_over_pixels() -> None:
    logits, masks = make_batch(5)
    predicted = {i for i, value in enumerate(logits.flatten().tolist()) if value > 0}
    truth = {i for i, value in enumerate(masks.flatten().tolist()) if value}
    precision, recall = len(predicted & truth) / len(predicted), len(predicted & truth) / len(truth)
    metrics = metrics_of(logits, masks)
    assert metrics["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert metrics["iou"] == pytest.approx(len(predicted & truth) / len(predicted | truth))


def test_sums_of_batches_add_up_to_the_whole_set() -> None:
    logits, masks = make_batch(7)
    losses = example_losses(logits, masks, 2.0)
    parts = [segmentation_sums(logits[i:j], masks[i:j], losses[i:j]) for i, j in ((0, 3), (3, 4), (4, 7))]
    added = {name: sum(part[name] for part in parts) for name in parts[0]}
    assert segmentation_metrics(added) == pytest.approx(segmentation_metrics(segmentation_sums(logits, masks, losses)))
    assert segmentation_metrics(added)["loss"] == pytest.approx(losses.mean().item())


def test_constant_f1_is_that_of_predicting_crack_everywhere() -> None:
    _, masks = make_batch(5)
    everywhere, nowhere = metrics_of(torch.ones_like(masks), masks), metrics_of(-torch.ones_like(masks), masks)
    assert everywhere["f1"] == pytest.approx(everywhere["constant_f1"])
    assert 0 < nowhere["constant_f1"] == everywhere["constant_f1"]
    assert nowhere["f1"] == 0


def test_set_without_any_crack_has_defined_metrics() -> None:
    masks = torch.zeros(2, 1, 8, 8)
    assert metrics_of(masks - 1, masks) == {"f1": 0, "iou": 0, "loss": 0, "constant_f1": 0}
    assert metrics_of(masks + 1, masks)["f1"] == 0
