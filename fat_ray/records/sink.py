"""Where a run's events go. A sink accepts events in order; flush makes them visible to readers."""

from collections.abc import Mapping
from typing import Protocol

from fat_ray.events import Event, Resumption, RunStart


class Sink(Protocol):
    """Receives the events of one run."""

    def emit(self, event: Event) -> None:
        """Accepts one event; it may be buffered until `flush`."""
        ...

    def flush(self) -> None:
        """Makes everything accepted so far visible to readers."""
        ...

    def close(self) -> None:
        """Flushes and releases what is held; `emit` must not be called again."""
        ...

    def position(self) -> dict[str, int]:
        """Where the records stand after a flush, for `rewind`."""
        ...

    def reaches(self, position: Mapping[str, int]) -> bool:
        """Whether everything up to a position is there."""
        ...

    def rewind(self, position: Mapping[str, int]) -> bool:
        """Takes back what was accepted after a position, but for a `RunStart` and `Resumption`s.

        Args:
            position: As `position` returned it; an empty one takes everything back.

        Returns:
            Whether there is a `RunStart`; if not, it must be accepted next.
        """
        ...


class MemorySink:
    """Keeps events in a list: for tests and notebooks."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        """Appends the event."""
        self.events.append(event)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is held."""

    def position(self) -> dict[str, int]:
        """Number of events."""
        return {"events": len(self.events)}

    def reaches(self, position: Mapping[str, int]) -> bool:
        """Whether there are as many."""
        return len(self.events) >= position["events"]

    def rewind(self, position: Mapping[str, int]) -> bool:
        """Forgets the later ones."""
        first = position.get("events", 0)
        self.events[first:] = [event for event in self.events[first:] if isinstance(event, (RunStart, Resumption))]
        return any(isinstance(event, RunStart) for event in self.events)


class NullSink:
    """Drops events: what every rank but the first writes to."""

    def emit(self, event: Event) -> None:
        """Drops the event."""

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is held."""

    def position(self) -> dict[str, int]:
        """Nowhere."""
        return {}

    def reaches(self, position: Mapping[str, int]) -> bool:  # noqa: ARG002 - the protocol's
        """Nothing is missing."""
        return True

    def rewind(self, position: Mapping[str, int]) -> bool:  # noqa: ARG002 - the protocol's
        """Nothing is missing."""
        return True
