"""What replayed schedules would cost: active elements, exactly; floating point operations, by a model of the backward."""

import numpy as np

from fat_ray.replay.recording import Costs, Recording
from fat_ray.replay.simulate import Schedules
from fat_ray.rules import Floats, Ints


def mean_active(recording: Recording, schedules: Schedules) -> Floats:
    """N̄ of each schedule: the mean over the steps of its active elements, (settings,). What freezes at a step no longer counts in it."""
    return (schedules.frozen_at @ recording.elements) / schedules.steps


def final_active(recording: Recording, schedules: Schedules) -> Ints:
    """Elements that are active in the last step, (settings,)."""
    return (schedules.frozen_at >= schedules.steps) @ recording.elements


def flops(recording: Recording, schedules: Schedules) -> Floats | None:
    """Floating point operations of whole runs by these schedules, (settings,); None where the records do not say what layers cost.

    Forwards cost what they did. The gradient to a layer's weights costs in proportion to what of the layer is active. The gradient to its
    inputs is computed while anything is active in a layer that is used before it; products without a weight have two of these, one per
    operand. A step's backward comes before its decision, so that freezing saves from the step after on. Scaled so that without freezing
    the first step comes out as it was recorded.
    """
    costs = recording.costs
    if costs is None:
        return None
    relative = np.concatenate([[0.0], np.cumsum(costs.forward / costs.forward[0])])  # of n steps: in units of the first
    trained = np.minimum(schedules.frozen_at + 1, schedules.steps)
    place = {layer: place for place, layer in enumerate(costs.layers) if layer is not None}
    places = np.array([place.get(group.layer, len(costs.layers)) for group in recording.groups])
    weights = relative[trained] @ _weight_shares(recording, costs)
    inputs = relative[_reached(places, trained, len(costs.layers))] @ _input_shares(costs, int(places.min()))
    forward = costs.forward[0] * relative[schedules.steps]
    total: Floats = forward + costs.weight_gradient * weights + costs.input_gradient * inputs
    return total


def _weight_shares(recording: Recording, costs: Costs) -> Floats:
    """Of the gradients to weights, what those of each group cost, (groups,)."""
    forward = dict(zip(costs.layers, costs.layer_forward.tolist(), strict=True))
    elements: dict[str, int] = {}
    for group in recording.groups:
        elements[group.layer] = elements.get(group.layer, 0) + group.elements
    each = np.array([forward.get(group.layer, 0.0) * group.elements / elements[group.layer] for group in recording.groups])
    shares: Floats = each / max(each.sum(), 1.0)
    return shares


def _input_shares(costs: Costs, first: int) -> Floats:
    """Of the gradients to inputs, what those of each place cost, (layers,); up to the first layer with a group there are none."""
    each = costs.layer_forward * np.array([1.0 if layer is not None else 2.0 for layer in costs.layers])
    each[: first + 1] = 0.0
    shares: Floats = each / max(each.sum(), 1.0)
    return shares


def _reached(places: Ints, trained: Ints, number: int) -> Ints:
    """For how many steps anything before each place is trained, (settings, layers).

    Args:
        places: Of each group's layer; `number` for layers that no step uses.
        trained: Steps for which each group is, (settings, groups).
        number: Of places.
    """
    last = np.zeros((len(trained), number + 2), np.int64)
    for place, steps in zip(places.tolist(), trained.T, strict=True):
        last[:, place + 1] = np.maximum(last[:, place + 1], steps)
    return np.maximum.accumulate(last, axis=1)[:, :number]
