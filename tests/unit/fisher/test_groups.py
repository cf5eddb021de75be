"""Groups partition the trainable parameters, and pair what belongs together."""

import pytest
import torch
from torch import nn

from fat_ray.errors import InputError
from fat_ray.fisher.groups import Group, build_groups
from fat_ray.spec.run import GroupSpec


class Odd(nn.Module):
    """Parameters of every kind: bare, scalar, shared, transposed, fused."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 7, 5))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.attention = nn.MultiheadAttention(6, 2)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.GroupNorm(2, 6)
        self.conv = nn.Conv2d(4, 9, 3, groups=1)
        self.frozen = nn.Linear(3, 3).requires_grad_(requires_grad=False)


def rows_covered(groups: list[Group], parameter: str) -> list[int]:
    return sorted(row for group in groups for m in group.members if m.parameter == parameter for row in range(m.start, m.stop))


def by_name(groups: list[Group]) -> dict[str, list[str]]:
    return {group.name: [member.parameter for member in group.members] for group in groups}


@pytest.mark.parametrize("blocks", [1, 3, 4, 50])
def test_every_trainable_row_belongs_to_exactly_one_group(blocks: int) -> None:
    model = Odd()
    groups = build_groups(model, GroupSpec(blocks=blocks, min_block=1))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trainable.items():
        assert rows_covered(groups, name) == list(range(parameter.shape[0] if parameter.ndim else 1))
    assert sum(group.elements for group in groups) == sum(parameter.numel() for parameter in trainable.values())
    assert len({group.name for group in groups}) == len(groups)


def test_weight_blocks_carry_their_bias_rows() -> None:
    groups = build_groups(nn.Sequential(nn.Linear(3, 10)), GroupSpec(blocks=4, min_block=1))
    assert [group.name for group in groups] == ["0[0:2]", "0[2:5]", "0[5:7]", "0[7:10]"]
    assert all(
        [(m.role, m.start, m.stop) for m in g.members] == [("weight", s, e), ("bias", s, e)]
        for g, (s, e) in zip(groups, [(0, 2), (2, 5), (5, 7), (7, 10)], strict=True)
    )


def test_special_layers() -> None:
    names = by_name(build_groups(Odd(), GroupSpec(blocks=1, min_block=1)))
    assert names["norm"] == ["norm.weight", "norm.bias"]
    assert names["attention"] == ["attention.in_proj_weight", "attention.in_proj_bias"]
    assert names["up.weight"] == ["up.weight"]  # its rows are inputs, its bias entries outputs
    assert names["up.bias"] == ["up.bias"]
    assert names["embed"] == ["embed.weight"]  # shared with head: the first owner keeps it
    assert not any(name.startswith(("head", "frozen")) for name in names)


def test_small_tensors_are_cut_into_fewer_blocks() -> None:
    groups = build_groups(nn.Sequential(nn.Linear(3, 10)), GroupSpec(blocks=4, min_block=4))
    assert [group.name for group in groups] == ["0[0:5]", "0[5:10]"]


def test_parameters_without_a_shape_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(5))
    with pytest.raises(InputError, match=r"1\.weight has no shape before the first forward"):
        build_groups(model, GroupSpec())
    model(torch.zeros(1, 3))
    assert sum(group.elements for group in build_groups(model, GroupSpec())) == 16 + 25
