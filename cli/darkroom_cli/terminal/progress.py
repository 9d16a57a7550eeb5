"""How a job's way is shown while it is followed: a bar on a terminal, a line for each change elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from darkroom.jobs import State, read_value
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from darkroom_cli.client import Message
from darkroom_cli.terminal.output import Output

WHOLE = 100
"""Progress is in percent."""


class Display(Protocol):
    """Shows one job."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, words: str, percent: int) -> None:
        """What it is doing, and how far it is."""


class Bar:
    """A line on a terminal that changes, and goes when the job has ended."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._line = self._progress.add_task("", total=WHOLE)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, words: str, percent: int) -> None:
        self._progress.update(self._line, description=words, completed=percent)


class Lines:
    """A line for each change, for logs and pipes."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, words: str, percent: int) -> None:
        if (words, percent) != self._last:
            self._last = (words, percent)
            self._output.say(f"{words}, {percent} %" if percent else words)


def display(output: Output) -> Display:
    """The one for where stderr goes."""
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal and not output.as_json else Lines(output)


def words_for(message: Message, place: int | None) -> str:
    """What the job does, in words."""
    state = read_value(State, message["state"])
    if state is State.PENDING:
        return "waiting" if place is None else f"waiting, place {place} in the queue"
    if state is State.RUNNING:
        return "developing"
    return state.value
