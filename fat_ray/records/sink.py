"""Where a run's events go. A sink accepts events in order; flush makes them visible to readers."""

from typing import Protocol

from fat_ray.events import Event


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


class NullSink:
    """Drops events: what every rank but the first writes to."""

    def emit(self, event: Event) -> None:
        """Drops the event."""

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is held."""
