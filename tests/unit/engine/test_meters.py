import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fat_ray.engine import meters
from fat_ray.engine.meters import PeakMemory, StepMeter, ddp_bytes, optimizer_bytes

CPU, MIB = torch.device("cpu"), 2**20


def stepped(optimizer: type[torch.optim.Optimizer], **options: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(7, 5)
    made = optimizer(model.parameters(), **options)
    model(torch.ones(1, 7)).sum().backward()
    made.step()
    return model, made


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        (torch.optim.SGD, {"lr": 0.1}, 0),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, 4 * 40),
        (torch.optim.AdamW, {"lr": 0.1}, 2 * 4 * 40 + 2 * 4),  # two moments, and a count per tensor
    ],
)
def test_optimizer_state_is_counted_in_bytes(optimizer: type[torch.optim.Optimizer], options: dict[str, float], expected: int) -> None:
    assert optimizer_bytes(stepped(optimizer, **options)[1]) == expected


def test_state_that_is_dropped_is_seen_after_a_change() -> None:
    model, optimizer = stepped(torch.optim.AdamW, lr=0.1)
    meter = StepMeter(model, optimizer, CPU)
    meter.begin()
    before = meter.end()
    meter.begin()
    optimizer.state.pop(model.weight)
    meter.changed()
    after = meter.end()
    assert before.optimizer_bytes - after.optimizer_bytes == 2 * 4 * 35 + 4
    assert (before.comm_bytes, after.comm_bytes) == (0, 0)


def test_ddp_sends_nothing_without_other_ranks_else_gradients_and_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, dtype=torch.float64))
    model[0].weight.requires_grad_(False)
    assert ddp_bytes(model) == 0
    monkeypatch.setattr(meters, "world", lambda: (0, 2))
    assert ddp_bytes(model) == 4 * 4 + 8 * 4 + 8 * 10 + (8 * 4 + 8)


def allocate(num_bytes: int) -> None:
    """Touches each page and gives the memory back."""
    torch.ones(num_bytes // 4).sum()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets the peak of a process")
def test_the_peak_is_that_since_the_beginning() -> None:
    memory = PeakMemory(CPU)
    if not memory._resets:
        pytest.skip("this kernel does not reset the peak of a process")
    memory.begin()
    idle = memory.read()
    allocate(64 * MIB)
    assert 60 * MIB < memory.read() - idle < 80 * MIB
    memory.begin()
    assert memory.read() - idle < 16 * MIB


def test_where_the_peak_cannot_be_reset_it_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(meters, "_RESET", tmp_path / "missing" / "clear_refs")
    memory = PeakMemory(CPU)
    allocate(64 * MIB)
    highest = memory.read()
    memory.begin()
    assert memory.read() >= highest > 64 * MIB
