import pytest

from fat_ray.view import text

MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("write", "value", "written"),
    [
        (text.score, 0.61249, "0.612"),
        (text.score, -0.5, f"{MINUS}0.500"),
        (text.difference, 0.0041, "+0.004"),
        (text.difference, -0.0369, f"{MINUS}0.037"),
        (text.percent, 0.854, f"85{NBSP}%"),
        (text.percent, 0.0312, f"3.1{NBSP}%"),
        (text.percent, 1.0, f"100{NBSP}%"),
        (text.percent, 0.0, f"0{NBSP}%"),
        (text.ratio, 0.899, "0.90\N{MULTIPLICATION SIGN}"),
        (text.quantity, 600, "600"),
        (text.quantity, 2_549_000, "2.55M"),
        (text.quantity, 999_700, "1M"),
        (text.quantity, 3.0e20, "300E"),
        (text.seconds, 30.62, f"30.6{NBSP}s"),
        (text.seconds, 106, f"1{NBSP}min 46{NBSP}s"),
        (text.seconds, 7380, f"2{NBSP}h 03{NBSP}min"),
    ],
)
def test_numbers(write, value: float, written: str) -> None:
    assert write(value) == written
    assert write(None) == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "written"), [(-0.51234, f"{MINUS}0.512"), (1e-4, "0.0001"), (12, "12"), (True, "true"), (None, "null"), ("a b", "a b")]
)
def test_settings(value: object, written: str) -> None:
    assert text.scalar(value) == written


def test_short_names_are_the_shortest_endings_that_differ() -> None:
    keys = ["freeze.threshold", "fisher.every", "freeze.every", "train.optimizer.lr"]
    assert list(text.short_names(keys).values()) == ["threshold", "fisher.every", "freeze.every", "lr"]


def test_a_name_that_is_another_ones_ending_stays_whole() -> None:
    assert text.short_names(["every", "freeze.every"]) == {"every": "every", "freeze.every": "freeze.every"}


def test_listing_and_count() -> None:
    assert [text.listing(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [text.count(number, "run") for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (-1, "0 s"), (None, text.DASH)]
)
def test_durations(seconds: float | None, written: str) -> None:
    assert text.duration(seconds) == written


@pytest.mark.parametrize(("seconds", "written"), [(0.4, "0:00"), (59.6, "1:00"), (185, "3:05"), (7620, "2:07:00")])
def test_a_clock(seconds: float, written: str) -> None:
    assert text.clock(seconds) == written


def test_a_sparkline_is_a_curve_of_shares_over_all_steps() -> None:
    falling = [(0, 1.0), (4, 0.75), (8, 0.5), (12, 0.25), (15, 0.01)]
    assert text.sparkline(falling, 16, 4) == "█▆▄▁"
    assert text.sparkline(falling, 32, 8) == "█▆▄▁    "
    assert text.sparkline([(0, 1.0), (1, 0.1), (39, 0.1)], 40, 4) == "▁▁▁▁"
    assert text.sparkline([(0, 1.0)], 100, 5) == "█    "
    assert text.sparkline([(0, 0.0), (3, 0.0)], 2, 3) == "▁▁▁"
    assert text.sparkline([], 10, 3) == "   "
