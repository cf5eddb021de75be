"""The Hugging Face Trainer with the callback trains as a plain loop with a Freezer does, to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from fat_ray.errors import InputError
from fat_ray.fisher.collector import Share
from fat_ray.freeze.freezer import Freezer
from fat_ray.freeze.huggingface import STATE_FILE, FreezeCallback
from fat_ray.spec.run import merge
from tests.support.fine_tuning import BATCH, SPEC, STEPS, Outcome, OwnAdamW, assert_same, examples, plain_loop
from tests.support.huggingface import make, train, with_optimizer


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


def test_equals_a_plain_loop_with_an_optimizer_that_takes_no_pieces(tmp_path: Path) -> None:
    trainer, outcome = with_optimizer(make(tmp_path), OwnAdamW), Outcome()
    trainer.add_callback(FreezeCallback(trainer, SPEC, emit=outcome.emit))
    trainer.train()
    assert_same(outcome.keep(trainer.model), plain_loop(OwnAdamW))


def test_tells_where_unequal_micro_batches_lie_in_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[Share] = []
    monkeypatch.setattr(Freezer, "arm", lambda _, share: shares.append(share))
    trainer = make(tmp_path, examples(10), micro_batch=4, gradient_accumulation_steps=3, max_steps=1)
    trainer.add_callback(FreezeCallback(trainer, {"freeze": {"policy": "none"}}))
    trainer.train()
    assert [(share.local, share.first, share.size, share.backward_over) for share in shares] == [
        (10, 0, 4, 12),
        (10, 4, 4, 12),
        (10, 8, 2, 6),
    ]


def test_logs_events_beside_the_trainers_own_lines(tmp_path: Path) -> None:
    trainer, outcome = train(tmp_path)
    total = sum(p.numel() for p in trainer.model.state_dict().values())
    logged = [(line["step"], line["freeze/active_fraction"]) for line in trainer.state.log_history if "freeze/active_fraction" in line]
    assert logged == [(event.step, event.active_elements / total) for event in outcome.freezes]
    assert sum("loss" in line for line in trainer.state.log_history) == STEPS


def test_a_frozen_transformer_is_saved_as_the_plain_model(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=8
    )
    rows = [{"input_ids": torch.randint(1, 20, (6,)), "labels": index % 2} for index in range(32)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=12, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", label_names=["labels"]
    )
    trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=rows)
    trainer.add_callback(FreezeCallback(trainer, SPEC))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded, plain = BertForSequenceClassification.from_pretrained(tmp_path / "saved"), BertForSequenceClassification(config)
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, trainer.model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert any("freeze/active_fraction" in line for line in trainer.state.log_history)


@pytest.mark.parametrize("spec", [SPEC, merge(SPEC, {"drift": {"compare": "average", "noise": "none"}})])
def test_a_resumed_training_equals_the_uninterrupted_one_to_the_bit(tmp_path: Path, spec: dict[str, Any]) -> None:
    _, expected = train(tmp_path, spec=spec, save_strategy="steps", save_steps=5)
    for checkpoint, step in ((str(tmp_path / "checkpoint-5"), 5), (True, STEPS)):
        trainer, outcome = train(tmp_path, None, checkpoint, spec=spec)
        assert outcome.drifts == [event for event in expected.drifts if event.step >= step]
        assert [event.frozen for event in outcome.freezes] == [event.frozen for event in expected.freezes if event.step >= step]
        assert all(torch.equal(value, expected.weights[key]) for key, value in outcome.weights.items())
        assert trainer.state.global_step == STEPS


def test_resuming_needs_the_state_of_a_freezer_of_the_same_groups(tmp_path: Path) -> None:
    train(tmp_path, save_strategy="steps", save_steps=5)
    checkpoint = str(tmp_path / "checkpoint-5")
    with pytest.raises(InputError, match="saved with 12 groups, and this model has 7"):
        train(tmp_path, None, checkpoint, spec=merge(SPEC, {"fisher": {"groups": {"blocks": 2}}}))
    (tmp_path / "checkpoint-5" / STATE_FILE).unlink()
    with pytest.raises(InputError, match="saved without FreezeCallback"):
        train(tmp_path, None, checkpoint)


@pytest.mark.parametrize(
    ("settings", "message"), [({"auto_find_batch_size": True}, "auto_find_batch_size = True"), ({"n_gpu": 2}, r"n_gpu = 2 .* torchrun")]
)
def test_refuses_what_it_cannot_do(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    trainer = make(tmp_path)
    for name, value in settings.items():
        setattr(trainer.args, "_n_gpu" if name == "n_gpu" else name, value)
    with pytest.raises(InputError, match=message):
        FreezeCallback(trainer, SPEC)
