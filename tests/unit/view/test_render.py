"""What the picture looks like on terminals of several sizes."""

import io

import pytest
from rich.console import Console

from fat_ray.view.picture import Picture, TrialLine
from fat_ray.view.render import failures, render, setting, visible
from tests.support.pictures import line, picture


def page(shown: Picture, width: int = 100, height: int | None = None, **options: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(shown, console, height=height, **options))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def row(lines: list[str], name: str) -> list[str]:
    """The words of the last line that begins with the name; settings, numbers and bars are words."""
    return next(line.removeprefix("◆").split() for line in reversed(lines) if line.removeprefix("◆").split()[:1] == [name])


def study(count: int = 3) -> Picture:
    done = [line(number, "completed", step=60, values=[0.9 - 0.01 * number, 1e6 - 1e5 * number]) for number in range(count)]
    bad = line(count, "diverged", reason="loss is nan at step 3", last=None, best=None)
    return picture(*done, bad, line(count + 1), line(count + 2, "waiting", last=None, best=None, active=[], elapsed_s=0.0, step=0))


def test_the_header_says_how_far_it_is() -> None:
    lines = page(picture(line(0, "completed", elapsed_s=100.0), line(1, step=30), total=4, elapsed_s=125.0))
    assert lines[0].split() == ["quick", "running", "2", "min", "05", "s,", "about", "4", "min", "10", "s", "left"]
    assert lines[1].endswith("38 %")
    assert lines[2] == "1 of 4 done (1 completed) · 1 running · 2 queued"


def test_each_trial_tells_setting_status_step_curve_and_values() -> None:
    lines = page(study())
    assert row(lines, "t0004") == ["t0004", "−0.123", "8", "4", "running", "20/60", "██▄▄", "50", "%", "0.612", "0.712", "0:42"]
    assert row(lines, "t0005") == ["t0005", "−0.123", "8", "4", "waiting", "0/60", "–", "–", "–"]
    headings = " ".join(lines)
    for heading in ("threshold", "active", "over the steps", "last", "best", "val/f1"):
        assert heading in headings


def test_the_front_has_settings_and_values_at_budget_and_marks_the_compromise() -> None:
    lines = page(study())
    start = lines.index("Pareto front, values at budget")
    front = lines[start + 3 : start + 6]
    assert [words.split()[-5:] for words in front] == [
        ["−0.123", "8", "4", "0.900", "1M"],
        ["−0.123", "8", "4", "0.890", "900k"],
        ["−0.123", "8", "4", "0.880", "800k"],
    ]
    [marked] = [words for words in front if words.startswith("◆")]
    assert "t0001" in marked
    assert lines[start + 6] == "◆ best compromise between the objectives"


@pytest.mark.parametrize("width", [50, 60, 80, 100, 124])
@pytest.mark.parametrize("height", [20, 24, 30, 50])
def test_two_hundred_trials_fit_on_any_screen(width: int, height: int) -> None:
    shown = study(200)
    lines = page(picture(*shown.trials, total=203, warnings=["w" * 300, "v" * 300, "u", "t"]), width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert "running" in row(lines, "t0201")  # what runs is always there
    assert "200 of 203 done" not in lines[2]
    assert lines[2].startswith("201 of 203 done (200 completed")


def test_on_a_narrow_terminal_less_important_columns_go_before_the_settings_are_cut() -> None:
    wide, narrow, narrower = (" ".join(page(picture(line(0)), width)) for width in (100, 78, 70))
    assert "best" in wide
    assert "best" not in narrow
    assert "0:42" in narrow
    assert "0:42" not in narrower
    assert "██▄▄" in narrower


def test_what_does_not_fit_is_joined_and_cut() -> None:
    many = {f"freeze.field{number}": 0.5 for number in range(9)}
    lines = page(picture(line(0, params=many)), 80)
    assert "field0=0.5" in lines[-1]
    assert "…" in lines[-1]
    assert "██▄▄" in lines[-1]


def test_without_a_limit_all_trials_are_there() -> None:
    names = [words.split()[0] for words in page(study(40)) if words.startswith("t00") and "/60" in words]
    assert names == [f"t{number:04d}" for number in range(43)]


def test_seeds_have_a_column_where_there_are_several() -> None:
    assert "2/3" in row(page(picture(line(0, seeds=3, seeds_done=2))), "t0000")


def test_warnings_and_failures_are_shown_once_and_cut_while_room_is_scarce() -> None:
    shown = picture(
        line(0, "failed", reason="no memory"),
        line(1, "failed", reason="no memory"),
        line(2, "diverged", reason="nan"),
        warnings=["w" * 200],
    )
    assert failures(shown.trials) == ["t0000 (and 1 more) failed: no memory", "t0002 diverged: nan"]
    lines = page(shown, 100, 30)
    assert "! t0000 (and 1 more) failed: no memory" in lines
    assert sum("w" * 50 in line for line in lines) == 1
    assert "w" * 200 in "".join(page(shown, 100, 30, all_warnings=True))


def test_only_the_latest_warnings_are_shown_while_room_is_scarce() -> None:
    lines = page(picture(warnings=[f"warning {number}" for number in range(9)]), 100, 30)
    assert lines[-4:] == ["! 6 earlier warnings", "! warning 6", "! warning 7", "! warning 8"]


def test_an_early_end_and_a_driver_that_is_gone_are_announced() -> None:
    assert "ends early: interrupted" in page(picture(state="ending", detail="ends early: interrupted"))[0]
    lines = page(picture(line(0, "interrupted"), state="gone", detail="the driver is gone: fat-ray resume out/quick goes on"))
    assert lines[0].startswith("quick  gone")
    assert "fat-ray resume out/quick goes on" in " ".join(lines[:2])
    assert "0 of 10 done · 1 interrupted · 9 not begun" in lines
    assert page(picture(line(0, "completed"), total=1, state="done"))[2] == "1 of 1 done (1 completed)"


def test_on_a_small_screen_what_runs_stays_visible() -> None:
    states = ["completed"] * 3 + ["running"] + ["completed"] * 4 + ["waiting"]
    trials: list[TrialLine] = [line(number, state) for number, state in enumerate(states)]
    assert [trial.name for trial in visible(trials, 4)] == ["t0003", "t0006", "t0007", "t0008"]


def test_a_setting_in_one_line_can_be_copied() -> None:
    assert setting(line(0)) == "threshold=-0.123 freeze.every=8 fisher.every=4"
