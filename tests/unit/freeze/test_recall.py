"""What is remembered is returned to the bit and to the stride, and what cannot be remembered is found out and computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.freeze.digest import same_bits
from fat_ray.freeze.recall import CHECK_EVERY, TRIES, Recall, Shared


class Counted(nn.Module):
    """Calls a function of its weight and its input, and counts how often."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), requires_grad=False)
        self.function, self.num_calls = function, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        return self.function(self.weight, *args, **kwargs)


def remembering(function: Callable[..., Any], limit: int = 10**6) -> tuple[Counted, Recall, list[str]]:
    told: list[str] = []
    module = Counted(function)
    return module, Recall("layer", module, Shared(limit, told.append)), told


def ask(recall: Recall, *args: Any, **kwargs: Any) -> Any:
    return recall(recall.body.forward, args, kwargs)


def examples(count: int = 8) -> Tensor:
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def pointwise(weight: Tensor, x: Tensor) -> Tensor:
    return functional.conv2d(x, weight[:, :, None, None])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_examples_that_come_again_are_not_computed_whatever_their_order(layout: torch.memory_format) -> None:
    module, recall, told = remembering(pointwise)
    data = examples().to(memory_format=layout)
    batches = [[0, 1, 2, 3], [4, 5, 6, 7], [6, 1, 3, 4], [7, 0, 2, 5], [5, 5, 1, 0]]
    for number, chosen in enumerate(batches):
        x = data[chosen].to(memory_format=layout)
        y = ask(recall, x)
        expected = module.function(module.weight, x)
        assert same_bits([y], [expected])
        assert y.stride() == expected.stride()
        y.zero_()  # what the caller does with it is his affair
        assert module.num_calls == 2 * min(number + 1, 2)  # as often once more to try it out
    assert recall.spared == 3 - 2
    assert told == []


def test_structures_names_and_arguments_without_examples_are_kept_apart() -> None:
    def several(weight: Tensor, x: Tensor, *, scale: Tensor, twice: bool = False) -> dict[str, Any]:
        y = x @ weight * scale
        return {"one": [y, None], "other": (y * (2 if twice else 1), "text")}

    module, recall, _ = remembering(several)
    x, scale = torch.randn(3, 4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    for arguments in ({"scale": scale}, {"scale": scale, "twice": True}, {"scale": scale + 1}):
        expected = module.function(module.weight, x, **arguments)
        for _ in range(2):
            found = ask(recall, x, **arguments)
            assert found["one"][1] is None
            assert found["other"][1] == "text"
            assert same_bits([found["one"][0], found["other"][0]], [expected["one"][0], expected["other"][0]])
    assert module.num_calls == 2 * 3  # each once, and tried out


def test_a_module_that_reads_what_another_has_returned_need_not_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Shared(10**6, lambda text: None)
    first, second = Counted(pointwise), Counted(pointwise)
    recalls = [Recall("first", first, shared), Recall("second", second, shared)]

    def both(x: Tensor) -> Tensor:
        return ask(recalls[1], ask(recalls[0], x))

    expected = both(examples())
    monkeypatch.setattr("fat_ray.freeze.examples.contents", lambda tensor: pytest.fail("read") if tensor.shape[-1] == 6 else b"")
    with pytest.raises(pytest.fail.Exception):
        ask(recalls[1], ask(recalls[0], examples()).clone())
    monkeypatch.undo()
    given = ask(recalls[0], examples())
    monkeypatch.setattr("fat_ray.freeze.examples.contents", lambda _: pytest.fail("read"))
    assert same_bits([ask(recalls[1], given)], [expected])
    given.mul_(2)
    with pytest.raises(pytest.fail.Exception):  # somebody wrote to it
        ask(recalls[1], given)


def test_what_follows_a_module_notices_its_other_weights_and_its_checks() -> None:
    shared = Shared(10**6, lambda text: None)
    first, second = Counted(pointwise), Counted(pointwise)
    recalls = [Recall("first", first, shared), Recall("second", second, shared)]

    def both(x: Tensor) -> Tensor:
        return ask(recalls[1], ask(recalls[0], x))

    before = both(examples())
    used = shared.used
    for _ in range(2 * CHECK_EVERY):
        assert same_bits([both(examples())], [before])
    assert (first.num_calls, second.num_calls) == (4, 4)  # learnt, tried out and checked
    assert shared.used == used
    first.weight.mul_(2)
    assert same_bits([both(examples())], [second.function(second.weight, first.function(first.weight, examples()))])


class Drifting:
    """Returns something else after some calls, for no reason that can be seen."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, weight: Tensor, x: Tensor) -> Tensor:
        self.calls -= 1
        return x @ weight + (self.calls < 0)


def test_answers_are_compared_with_what_is_computed_every_so_often() -> None:
    module, recall, told = remembering(Drifting(3))
    x = torch.randn(2, 4)
    expected = ask(recall, x)
    for _ in range(CHECK_EVERY):
        assert same_bits([ask(recall, x)], [expected])
    assert module.num_calls == 3
    assert not recall.off
    for _ in range(CHECK_EVERY - 1):
        ask(recall, x)
    assert same_bits([ask(recall, x)], [expected + 1])
    reason = "it returns other bits for the same examples; up to 32 answers before may have been wrong"
    assert told == [f"layer is no longer remembered: {reason}"]
    assert recall._shared.used == 0


def test_a_few_batches_of_each_kind_are_tried_out() -> None:
    module, recall, _ = remembering(pointwise)
    for number in range(TRIES + 3):
        ask(recall, examples() + number)
    assert module.num_calls == 2 * TRIES + 3


def batch_mean(weight: Tensor, x: Tensor) -> Tensor:
    return (x - x.mean(0)) @ weight


def by_place(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight + torch.arange(len(x))[:, None]


def returns_its_input(weight: Tensor, x: Tensor) -> Tensor:
    return x


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "random": (lambda w, x: functional.dropout(x @ w, 0.5), "it draws random numbers, or writes to what it is given"),
    "in place": (lambda w, x: x.relu_() @ w, "it draws random numbers, or writes to what it is given"),
    "batch": (batch_mean, "depends on the other examples of the batch, or on its place among them"),
    "place": (by_place, "depends on the other examples of the batch, or on its place among them"),
    "input": (returns_its_input, "it returns no tensors of its own"),
    "same twice": (lambda w, x: [x @ w] * 2, "it returns no tensors of its own"),
    "no tensor": (lambda w, x: 3, "it returns no tensors of its own"),
    "no examples": (lambda w, x: (x @ w).sum(), "it does not return one result per example"),
    "transposed": (lambda w, x: (x @ w).t().contiguous().t(), "it does not return one result per example"),
    "object": (lambda w, x: object(), "a object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_remembered_is_computed(name: str) -> None:
    function, reason = REFUSED[name]
    module, recall, told = remembering(function)
    x = torch.randn(4, 4)
    ask(recall, x)
    assert recall.off
    assert told[0].startswith("layer is no longer remembered: ")
    assert reason in told[0]
    calls = module.num_calls
    ask(recall, x)
    assert module.num_calls == calls + 1
    assert len(told) == 1


def test_a_result_of_another_kind_is_noticed() -> None:
    lengths = iter([2, 2, 3, 3])
    _, recall, told = remembering(lambda w, x: (x @ w)[:, : next(lengths)].clone())
    ask(recall, torch.randn(4, 4))
    ask(recall, torch.randn(4, 4))
    assert "it returns something else for batches of the same kind" in told[0]


def test_what_it_is_given_must_be_known() -> None:
    _, recall, told = remembering(lambda w, x, _: x @ w)
    ask(recall, torch.randn(4, 4), object())
    assert told == ["layer is no longer remembered: a object"]


def test_other_weights_are_another_module_and_the_same_written_again_are_not() -> None:
    module, recall, _ = remembering(lambda w, x: x @ w)
    x = torch.randn(2, 4)
    ask(recall, x)
    module.load_state_dict(module.state_dict())
    ask(recall, x)
    assert module.num_calls == 2  # computed and tried out
    module.weight.mul_(2)
    assert same_bits([ask(recall, x)], [x @ module.weight])
    module.weight.data = torch.zeros(4, 4)
    assert not ask(recall, x).any()


def test_modes_precision_and_size_of_the_batch_are_part_of_the_question() -> None:
    module, recall, _ = remembering(lambda w, x: functional.linear(x, w))
    x = torch.randn(2, 4)
    assert ask(recall, x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert ask(recall, x).dtype == torch.bfloat16
    calls = module.num_calls
    ask(recall, x[:1])
    assert module.num_calls == calls + 1
    module.eval()
    ask(recall, x)
    assert module.num_calls == calls + 3
    ask(recall, x)
    assert module.num_calls == calls + 3


def test_only_training_as_it_is_written_is_remembered() -> None:
    module, recall, _ = remembering(lambda w, x: functional.linear(x, w))
    x = torch.randn(2, 4)
    ask(recall, x)
    calls = module.num_calls
    with torch.inference_mode():
        ask(recall, x)
    ask(recall, x.clone().requires_grad_())
    recall._shared.in_training = False
    ask(recall, x)
    assert module.num_calls == calls + 3


def test_an_empty_batch_is_computed() -> None:
    _, recall, told = remembering(pointwise)
    assert ask(recall, examples(0)).shape == (0, 4, 6, 6)
    assert told == []


def test_memory_is_bounded() -> None:
    size = 4 * 4
    module, recall, told = remembering(lambda w, x: x @ w, limit=5 * size)
    data = torch.randn(8, 4)
    ask(recall, data[:4])
    assert recall._shared.used == 4 * size
    ask(recall, data[4:])
    assert recall.off
    assert recall._shared.used == 0
    assert "freeze.cache_prefix_bytes = 80 are full with 5 of its examples, and no batch came again" in told[0]
    module, recall, told = remembering(lambda w, x: x @ w, limit=5 * size)
    for first in (0, 0, 4, 0):
        ask(recall, data[first : first + 4])
    assert told == []  # it was of use already
    assert recall._shared.used == 5 * size
    assert module.num_calls == 2 * 2
