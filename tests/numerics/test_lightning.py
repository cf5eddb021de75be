"""The Lightning Trainer with the callback trains as a plain loop with a Freezer does, to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from fat_ray.errors import InputError
from fat_ray.fisher.collector import Share
from fat_ray.freeze.freezer import Freezer
from fat_ray.freeze.lightning import FreezeCallback
from fat_ray.spec.run import merge
from tests.support.fine_tuning import BATCH, SPEC, OwnAdamW, assert_same, examples, plain_loop
from tests.support.lightning import Module, fit, make


@pytest.mark.parametrize("micro_batch", [BATCH, BATCH // 2, BATCH // 4])
def test_equals_a_plain_loop(tmp_path: Path, micro_batch: int) -> None:
    trainer, outcome = fit(tmp_path, micro_batch=micro_batch)
    assert_same(outcome, plain_loop())
    total = sum(value.numel() for value in outcome.weights.values())
    assert float(trainer.callback_metrics["freeze/active_fraction"]) == pytest.approx(outcome.freezes[-1].active_elements / total)


def test_equals_a_plain_loop_with_an_optimizer_that_takes_no_pieces(tmp_path: Path) -> None:
    _, outcome = fit(tmp_path, kind=OwnAdamW)
    assert_same(outcome, plain_loop(OwnAdamW))


def test_tells_where_micro_batches_lie_in_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[Share] = []
    monkeypatch.setattr(Freezer, "arm", lambda _, share: shares.append(share))
    trainer = make(tmp_path, FreezeCallback({"freeze": {"policy": "none"}}), accumulate_grad_batches=3, max_steps=1)
    trainer.fit(Module(), DataLoader(examples(10), 4))
    assert [(share.local, share.first, share.size, share.backward_over) for share in shares] == [
        (12, 0, 4, 12),
        (12, 4, 4, 12),
        (10, 8, 2, 6),
    ]


@pytest.mark.parametrize("spec", [SPEC, merge(SPEC, {"drift": {"compare": "average", "noise": "none"}})])
def test_a_resumed_fit_equals_the_uninterrupted_one_to_the_bit(tmp_path: Path, spec: dict[str, Any]) -> None:
    _, expected = fit(tmp_path, spec=spec, save_steps=5)
    for step in (5, 10):
        _, outcome = fit(tmp_path / "again", None, tmp_path / f"step={step}.ckpt", spec=spec)
        assert outcome.drifts == [event for event in expected.drifts if event.step >= step]
        assert [event.frozen for event in outcome.freezes] == [event.frozen for event in expected.freezes if event.step >= step]
        assert all(torch.equal(value, expected.weights[key]) for key, value in outcome.weights.items())


def test_resuming_needs_a_checkpoint_with_the_callback(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.fit(Module(), DataLoader(examples(), BATCH))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(InputError, match=r"plain\.ckpt was saved without FreezeCallback"):
        make(tmp_path, FreezeCallback(SPEC)).fit(Module(), DataLoader(examples(), BATCH), ckpt_path=tmp_path / "plain.ckpt")


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Lbfgs(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (Manual, {"gradient_clip_val": None}, "automatic_optimization = False"),
        (Lbfgs, {"gradient_clip_val": None}, r"not \['LBFGS'\]"),
        (Module, {"plugins": [MixedPrecision("16-mixed", "cpu")]}, "precision = 16-mixed; use bf16-mixed"),
    ],
)
def test_refuses_what_it_cannot_do(tmp_path: Path, module: type[Module], settings: dict[str, Any], message: str) -> None:
    trainer = make(tmp_path, FreezeCallback(SPEC), **settings)
    with pytest.raises(InputError, match=message):
        trainer.fit(module(), DataLoader(examples(), BATCH))
