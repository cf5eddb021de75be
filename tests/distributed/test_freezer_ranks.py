"""Freezing on several ranks: what is communicated is what is active, ranks agree to the bit, and all equal one process."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fat_ray.errors import InputError, RankDisagreementError
from fat_ray.fisher.collector import Share
from fat_ray.fisher.reduce import world
from fat_ray.freeze import forms
from fat_ray.freeze.carried import gather_state
from fat_ray.freeze.freezer import Freezer
from tests.support.distributed import run_distributed
from tests.support.scripted import Scripted

STEPS, BATCH = 10, 8
NEEDS = frozenset({"gradient_norm", "fisher"})


def network() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.Tanh(), nn.Conv2d(8, 8, 2))
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    rank, size = world()
    yield from (torch.randn(BATCH, 2, 5, 5, dtype=torch.float64, generator=generator)[rank::size] for _ in range(STEPS))


def events(num_groups: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    some = rng.random(num_groups) < 0.6
    return {2: some, 4: some & (rng.random(num_groups) < 0.5), 6: rng.random(num_groups) < 0.6, 8: np.ones(num_groups, bool)}


class Wrapped:
    """The model in DDP, if there are ranks, with a count of the elements that its buckets hold."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.elements = model, 0
        self.wrap(init_sync=True)

    def wrap(self, *, init_sync: bool) -> None:
        self.forward: nn.Module = self.model
        if world()[1] > 1:
            self.forward = DistributedDataParallel(self.model, init_sync=init_sync, bucket_cap_mb=0.001)
            self.forward.register_comm_hook(None, self.count)

    def count(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        self.elements += bucket.buffer().numel()
        return allreduce_hook(state, bucket)


def train() -> dict[str, Any]:
    forms.worth_slicing = lambda *_: True  # these layers are far too small for it to pay
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    spec = {"fisher": {"groups": {"min_block": 1}}}
    policy = Scripted({}, NEEDS)
    freezer = Freezer(model, optimizer, spec, policy=policy)
    policy.events = events(len(freezer.groups))
    wrapped = Wrapped(model)
    sent, active = [], []
    for x in batches():
        optimizer.zero_grad()
        freezer.arm(len(x))
        wrapped.elements = 0
        active.append(freezer.entries.active_elements)
        wrapped.forward(x).square().mean().backward()
        sent.append(wrapped.elements)
        if freezer.after_backward():
            del wrapped.forward
            wrapped.wrap(init_sync=False)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    seen, state = [(o.gradient_norm, o.fisher) for o in policy.seen], copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="give the Freezer the network inside") if world()[1] > 1 else nullcontext():
        Freezer(wrapped.forward, optimizer, spec)
    return {"disagreement": thaw_on_one_rank(freezer, policy), "state": state, "sent": sent, "active": active, "seen": seen}


def thaw_on_one_rank(freezer: Freezer, policy: Scripted) -> str:
    """Freezes a group on all ranks and thaws it on the first."""
    most = np.arange(len(freezer.groups)) > 0
    policy.events = {STEPS: most, STEPS + 1: most | (world()[0] == 0)}
    freezer.after_backward()
    try:
        freezer.after_backward()
    except RankDisagreementError as error:
        return str(error)
    return ""


def test_two_ranks_send_what_is_active_and_equal_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run_distributed(train, 2)
    monkeypatch.setattr(forms, "worth_slicing", None)  # put back afterwards
    alone = train()
    assert first["sent"] == second["sent"] == first["active"] == alone["active"]
    assert len(set(first["sent"])) == 4
    assert all(torch.equal(value, second["state"][key]) for key, value in first["state"].items())
    torch.testing.assert_close(first["state"], alone["state"], rtol=1e-8, atol=1e-10)
    for (norms, fisher), (other_norms, other_fisher), (norms_alone, fisher_alone) in zip(
        *(r["seen"] for r in (first, second, alone)), strict=True
    ):
        np.testing.assert_array_equal(norms, other_norms)
        np.testing.assert_array_equal(fisher, other_fisher)
        np.testing.assert_allclose(norms, norms_alone, rtol=1e-8)
        np.testing.assert_allclose(fisher, fisher_alone, rtol=1e-5)


def train_sharded() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 3))
    groups: dict[str, Any] = {"blocks": 1, "min_block": 1, "bias": "apart"}
    shards = world()[1] > 1
    if shards:
        mesh = init_device_mesh("cpu", (world()[1],))
        fully_shard(model[2], mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    refused = ""
    try:
        Freezer(model, optimizer, {"fisher": {"groups": {"blocks": 2, "min_block": 1}}})
    except InputError as error:
        refused = str(error)
    targets = {
        1: [False, True, True, True, True, True],
        3: [False, False, False, True, True, False],
        5: [True] * 6,
        7: [True, False, True] * 2,
    }
    policy = Scripted({step: np.array(target) for step, target in targets.items()}, NEEDS)
    freezer = Freezer(model, optimizer, {"fisher": {"groups": groups}}, policy=policy)
    generator = torch.Generator().manual_seed(1)
    states = []
    for _ in range(STEPS):
        x = torch.randn(BATCH, 6, generator=generator)[world()[0] :: world()[1]]
        optimizer.zero_grad()
        freezer.arm(Share(len(x), *world()))
        model(x).square().mean().backward()
        freezer.after_backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        states.append([(p.full_tensor() if shards else p).detach().clone() for p in model.parameters()])  # type: ignore[attr-defined]
    return {"states": states, "refused": refused, "seen": [(o.gradient_norm, o.fisher) for o in policy.seen]}


def test_sharded_parameters_freeze_as_wholes_and_are_not_divided() -> None:
    first, second = run_distributed(train_sharded, 2)
    alone = train_sharded()
    assert first["refused"] == second["refused"]
    assert first["refused"].startswith("0.weight is sharded over ranks (fully_shard) and can only freeze as a whole, but is divided into 2")
    for one, two, single in zip(first["states"], second["states"], alone["states"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        torch.testing.assert_close(one, single, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(first["states"][4][:3], first["states"][3][:3], strict=True))
    np.testing.assert_array_equal(first["seen"], second["seen"])
    np.testing.assert_allclose(first["seen"], alone["seen"], rtol=1e-3)


def train_apart() -> dict[str, Any]:
    """Each rank trains a model of its own, on other data and with other events, in a process group of itself alone."""
    rank, size = world()
    groups = [dist.new_group([other]) for other in range(size)] if size > 1 else [None]
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=0.02)
    spec = {"fisher": {"every": 1, "groups": {"min_block": 1}}, "freeze": {"every": 2 + rank, "warmup_steps": 1, "threshold": 0.0}}
    freezer = Freezer(model, optimizer, spec, groups[rank])
    generator = torch.Generator().manual_seed(rank)
    for _ in range(8 + rank):
        x = torch.randn(BATCH, 2, 5, 5, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        freezer.arm(len(x))
        model(x).square().mean().backward()
        freezer.after_backward()
        optimizer.step()
    kept = gather_state(freezer)
    return {"state": model.state_dict(), "kept": kept, "active": freezer.entries.active.tolist()}


def test_all_collectives_stay_in_the_process_group() -> None:
    first, second = run_distributed(train_apart, 2)
    alone = train_apart()
    assert first["active"] == alone["active"]
    assert not all(alone["active"])
    torch.testing.assert_close(first["state"], alone["state"], rtol=0, atol=0)
    assert first["kept"].keys() == alone["kept"].keys()
    assert all(np.array_equal(first["kept"][name], value, equal_nan=True) for name, value in alone["kept"].items())
    assert second["active"] != first["active"]
