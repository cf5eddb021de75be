"""Every error that a user can cause or meet. The command line prints the message and nothing else."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input, said so that its author can mend it.

    Attributes:
        field: Dotted path of the field, such as ``freeze.threshold``; empty for the whole file.
        value: The offending value as written, already shortened for display; None when a field is missing.
        message: What is wrong and what would be right.
        line: Line in the study file, counted from 1; None when the value came from elsewhere (``--set``).
    """

    field: str
    value: str | None
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        what = f"{self.field or 'the file'}" + (f" = {self.value}" if self.value is not None else "")
        return f"{where}{what}: {self.message}"


class FatRayError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(FatRayError):
    """Something that the user gave is wrong; nothing was started."""

    exit_code = 2


class SpecError(InputError):
    """A study file is wrong. Holds all problems of the file at once."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))

    def __reduce__(self) -> tuple[type["SpecError"], tuple[str, list[Problem]]]:
        return type(self), (self.source, self.problems)


class DataError(InputError):
    """A data set or pretrained weights cannot be used: missing, unreadable, empty or inconsistent."""


class PolicyError(InputError):
    """A freezing policy cannot be built for this model and run, or a user's own decided something impossible."""


class OutputError(InputError):
    """The output directory cannot be used: it holds a study already, is not writable, or has no space left."""


class ResourceError(InputError):
    """The cluster cannot be reached, or cannot run what the study asks for."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. `exit_code` is what the command line ends with.

    Args:
        number: The signal.
        at_once: Nothing may be waited for; what is left behind is as after a kill.
    """

    def __init__(self, number: int, *, at_once: bool = False) -> None:
        super().__init__(f"signal {number}")
        self.exit_code, self.at_once = 128 + number, at_once


class RecordError(FatRayError):
    """Records cannot be read or written: missing, torn, foreign, or of a newer major version."""


class VanishedError(RecordError):
    """A file of records that was listed is gone: a compaction gathered it, so who lists again finds its rows."""


class DivergedError(FatRayError):
    """The training loss became NaN or infinite."""


class RankDisagreementError(FatRayError):
    """Two ranks of one run took different decisions; continuing would corrupt the run."""


class SupersededError(FatRayError):
    """A newer driver has taken the run over: whoever works on it for an older one leaves without writing anything more."""


class RunFailedError(FatRayError):
    """A run ended without a result, for the reason in the message."""


class WorkerLostError(RunFailedError):
    """The process of a worker died. Nothing is wrong with the run itself: it may go on from its newest checkpoint."""


class PlaceLostError(RunFailedError):
    """The place that a trial held on the cluster is gone with a node. Nothing is wrong with the run: its trial has to find another."""


class NotBegunError(RunFailedError):
    """The run was asked to stop while it waited for a place: nothing of it ran."""
