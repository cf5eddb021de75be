import random

from fat_ray.analysis.interaction import interactions


def trials(count: int, *, product: float = 0.0) -> list[tuple[dict[str, object], float]]:
    rng = random.Random(0)
    found = []
    for _ in range(count):
        a, b, c = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.choice(["x", "y"])
        found.append(({"a": a, "b": b, "c": c}, a - b**2 + 2 * (c == "x") + product * a * b + 0.05 * rng.gauss(0, 1)))
    return found


def test_what_is_only_added_does_not_act_together() -> None:
    found = interactions(trials(60))
    assert {one.settings for one in found} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert all(one.share < 0.02 and one.p_holm > 0.05 for one in found)


def test_a_product_is_found_and_comes_first() -> None:
    first, *others = interactions(trials(60, product=3.0))
    assert first.settings == ("a", "b")
    assert first.share > 0.2
    assert first.p_holm < 1e-6
    assert first.trials == 60
    assert all(one.p_holm > 0.05 for one in others)


def test_a_category_that_turns_a_number_round_is_found() -> None:
    rng = random.Random(1)
    rows = [
        ({"a": a, "c": c}, (a if c else -a) + 0.05 * rng.gauss(0, 1))
        for a, c in ((rng.uniform(-1, 1), rng.random() < 0.5) for _ in range(40))
    ]
    (found,) = interactions(rows)
    assert found.share > 0.8
    assert found.p < 1e-9


def test_few_trials_or_nothing_that_varies_say_nothing() -> None:
    assert interactions([]) == []
    assert interactions(trials(12)) == []
    assert interactions([({"a": float(i), "b": float(-i)}, 1.0) for i in range(40)]) == []


def test_conditional_settings_are_judged_where_both_were_suggested() -> None:
    rows = [(params if number % 2 else {"a": params["a"]}, value) for number, (params, value) in enumerate(trials(80, product=3.0))]
    assert {one.trials for one in interactions(rows)} == {40}
