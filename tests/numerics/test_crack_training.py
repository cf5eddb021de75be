"""The crack segmentation task is trained as it stands: every parameter takes part, and a few images are learnt."""

from pathlib import Path

import pytest
import torch

from fat_ray.spec.task import CrackSegmentationSpec
from fat_ray.tasks.crack.task import CrackSegmentation
from tests.crack_files import make_rows, write_rows


@pytest.fixture
def task(tmp_path: Path) -> CrackSegmentation:
    path = write_rows(tmp_path / "cracks.parquet", make_rows(10))
    return CrackSegmentation(CrackSegmentationSpec(data=str(path), image_size=32, head_width=8))


def test_every_parameter_receives_a_gradient(task: CrackSegmentation) -> None:
    torch.manual_seed(0)
    model = task.build_model()
    loss = task.loss(model, task.train_set().batch([0, 1], [0, 1]))
    loss.backward()
    assert loss.shape == ()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_few_steps_bring_the_loss_down_from_pretrained_weights(task: CrackSegmentation) -> None:
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = task.train_set().batch(range(6))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_fresh_head_comes_from_the_global_generator_alone(task: CrackSegmentation) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(task.build_model().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.fuse.weight"], states[2]["head.fuse.weight"])
