"""What schedules cost, against walking through their steps."""

import numpy as np
import pytest

from fat_ray.replay.costs import final_active, flops, mean_active
from fat_ray.replay.recording import Costs
from fat_ray.replay.simulate import Schedules
from tests.support.recordings import recording_of

STEPS = 6
LAYERS = ["l0", "l1", None, "l2", "l3"]
FORWARD = np.array([10.0, 0.0, 5.0, 20.0, 40.0])  # l1 is a norm; between it and l2 there is a product without weight
COSTS = Costs(forward=np.array([75.0] * STEPS), input_gradient=70.0, weight_gradient=70.0, layers=LAYERS, layer_forward=FORWARD)
RECORDING = recording_of(np.zeros((STEPS, 4)), steps=STEPS, elements=[1, 2, 3, 4], costs=COSTS)
FROZEN_AT = [[6, 6, 6, 6], [2, 0, 6, 4], [6, 2, 2, 2], [1, 3, 2, 6]]


def schedules() -> Schedules:
    return Schedules(STEPS, np.array(FROZEN_AT), np.full(len(FROZEN_AT), STEPS))


def test_active_elements_are_counted_after_the_decision_of_each_step() -> None:
    elements = np.array([1, 2, 3, 4])
    walked = [[int(elements[np.array(row) > step].sum()) for step in range(STEPS)] for row in FROZEN_AT]
    assert mean_active(RECORDING, schedules()) == pytest.approx([np.mean(steps) for steps in walked])
    assert final_active(RECORDING, schedules()).tolist() == [steps[-1] for steps in walked]


def walked_flops(frozen_at: list[int]) -> float:
    """A backward computes weight gradients of what was active before the decision of its step, and input gradients down to the first."""
    total = 0.0
    for step in range(STEPS):
        active = [frozen >= step for frozen in frozen_at]
        l0, l1, l2, l3 = active
        total += 75 + 10 * l0 + 20 * l2 + 40 * l3
        total += 2 * 5 * (l0 or l1) + 20 * (l0 or l1) + 40 * (l0 or l1 or l2)
    return total


def test_operations_are_those_that_a_backward_needs() -> None:
    assert flops(RECORDING, schedules()) == pytest.approx([walked_flops(row) for row in FROZEN_AT])


def test_without_layers_in_the_records_operations_are_not_known() -> None:
    assert flops(recording_of(np.zeros((STEPS, 4)), steps=STEPS), schedules()) is None
