"""The progress of a job that is followed: a bar on a terminal, otherwise a line per change."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from darkroom.jobs import State, read_value
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from darkroom_cli.following import Message
from darkroom_cli.terminal.output import Output

WHOLE = 100
"""Progress is in percent."""


class Display(Protocol):
    """Shows the progress of one job."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, text: str, percent: int) -> None:
        """Show the state and the progress."""


class ProgressBar:
    """A progress bar, removed from the terminal when the job has finished."""

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

    def show(self, text: str, percent: int) -> None:
        self._progress.update(self._line, description=text, completed=percent)


class ProgressLines:
    """A line per change, for logs and pipes."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, text: str, percent: int) -> None:
        if (text, percent) != self._last:
            self._last = (text, percent)
            self._output.info(f"{text}, {percent} %" if percent else text)


def display(output: Output) -> Display:
    """The display that suits stderr."""
    console = Console(stderr=True)
    return ProgressBar(console) if console.is_terminal and not output.as_json else ProgressLines(output)


def describe(message: Message, position: int | None) -> str:
    """The job's state as text."""
    state = read_value(State, message["state"])
    if state is State.PENDING:
        return "pending" if position is None else f"pending, position {position} in the queue"
    if state is State.RUNNING:
        return "running"
    return state.value
