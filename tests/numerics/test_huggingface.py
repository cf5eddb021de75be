"""The Hugging Face Trainer with the callback trains as a plain loop with a Freezer does, to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from fat_ray.errors import InputError
from fat_ray.freeze.huggingface import FreezeCallback
from tests.support.fine_tuning import BATCH, SPEC, STEPS, Outcome, assert_same, examples, plain_loop
from tests.support.huggingface import InOrder, make, train


@pytest.mark.parametrize("micro_batch", [BATCH, BATCH // 2, BATCH // 4])
def test_equals_a_plain_loop(tmp_path: Path, micro_batch: int) -> None:
    _, outcome = train(tmp_path, micro_batch=micro_batch)
    assert_same(outcome, plain_loop())


def test_equals_a_plain_loop_when_the_loss_is_normalised_over_the_step(tmp_path: Path) -> None:
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    trainer, outcome = make(tmp_path), Outcome()
    trainer.compute_loss_func = loss
    trainer.model.forward = lambda x: {"logits": trainer.model.head(trainer.model.body(x))}
    trainer.add_callback(FreezeCallback(trainer, SPEC, emit=outcome.emit))
    trainer.train()
    assert_same(outcome.keep(trainer.model), plain_loop())


def test_logs_events_beside_the_trainers_own_lines(tmp_path: Path) -> None:
    trainer, outcome = train(tmp_path)
    total = sum(p.numel() for p in trainer.model.state_dict().values())
    logged = [(line["step"], line["freeze/active_fraction"]) for line in trainer.state.log_history if "freeze/active_fraction" in line]
    assert logged == [(event.step, event.active_elements / total) for event in outcome.freezes]
    assert sum("loss" in line for line in trainer.state.log_history) == STEPS


def test_saves_the_plain_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trainer, outcome = train(tmp_path)
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == outcome.weights.keys()
    assert all(torch.equal(saved[key], value) for key, value in outcome.weights.items())


@pytest.mark.parametrize(
    ("settings", "message"), [({"auto_find_batch_size": True}, "auto_find_batch_size = True"), ({"n_gpu": 2}, r"n_gpu = 2 .* torchrun")]
)
def test_refuses_what_it_cannot_do(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    trainer = make(tmp_path)
    for name, value in settings.items():
        setattr(trainer.args, "_n_gpu" if name == "n_gpu" else name, value)
    with pytest.raises(InputError, match=message):
        FreezeCallback(trainer, SPEC)
