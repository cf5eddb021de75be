"""What a run may be asked for while it trains. Rank 0 asks at each step; all ranks act between this step and the next."""

from collections.abc import Callable
from enum import StrEnum


class Request(StrEnum):
    """Of several, whoever asks decides which one counts."""

    PRUNE = "pruned"  # end early for good
    STOP = "stopped"  # save a checkpoint and end, to be continued
    SAVE = "saved"  # save a checkpoint and go on
    LEAVE = "left"  # end without writing anything more: the run is another process's now


StopRequest = Callable[[], Request | None]
