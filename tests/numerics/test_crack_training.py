"""The crack segmentation task is trained as it stands: every parameter takes part, and a few images are learnt."""

from pathlib import Path

import pytest
import torch

from fat_ray.spec.task import CrackSegmentationSpec
from fat_ray.tasks.crack.model import CrackSegmenter
from fat_ray.tasks.crack.task import CrackSegmentation
from tests.crack_files import make_rows, write_rows


@pytest.fixture
def task(tmp_path: Path) -> CrackSegmentation:
    path = write_rows(tmp_path / "cracks.parquet", make_rows(10))
    return CrackSegmentation(CrackSegmentationSpec(data=str(path), image_size=64, head_width=16))


def test_every_parameter_receives_a_gradient_in_its_own_layout(task: CrackSegmentation) -> None:
    torch.manual_seed(0)
    model = task.build_model()
    loss = task.loss(model, task.train_set().batch([0, 1], [0, 1]))
    loss.backward()
    assert loss.shape == ()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    # DDP warns in every run when these differ.
    assert [name for name, parameter in model.named_parameters() if parameter.grad.stride() != parameter.stride()] == []


def test_a_few_steps_beat_every_constant_prediction(task: CrackSegmentation) -> None:
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images, masks = task.train_set().batch(range(6))
    for _ in range(12):
        optimizer.zero_grad()
        task.loss(model, (images, masks)).backward()
        optimizer.step()
    crack, pixels = 64, 64 * 64  # per image
    smallest_constant_loss = 1 - (2 * crack + 1) / (pixels + crack + 1)  # Dice of "all crack", and no cross-entropy at all
    assert task.loss(model, (images, masks)).item() < smallest_constant_loss


def test_fresh_head_comes_from_the_global_generator_alone(task: CrackSegmentation) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(task.build_model().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.fuse.weight"], states[2]["head.fuse.weight"])


def test_batchnorm_momentum_and_head_width_reach_the_model() -> None:
    model = CrackSegmenter(head_width=8, batchnorm_momentum=0.25)
    norms = [module for module in model.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.25}
    assert model.head.classify.in_channels == 8


def test_fresh_head_predicts_few_cracks() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        probability = CrackSegmenter(8, 0.1)(torch.rand(2, 3, 32, 32)).sigmoid().mean().item()
    assert 0.02 < probability < 0.12
