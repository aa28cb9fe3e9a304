"""Bars and lines on the terminal, for commands that work long."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_console = Console(stderr=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def say(text: str) -> None:
    """To standard error, beside the bars."""
    _console.print(text, highlight=False, markup=False, soft_wrap=True)


def die(text: str) -> NoReturn:
    """Ends this process at once with status 1, whatever its threads wait for."""
    _console.show_cursor(True)  # a bar may have hidden it
    say(text)
    os._exit(1)


@contextlib.contextmanager
def bar(description: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, on a terminal; yields what sets how many are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    hidden = not (shown and _console.is_terminal)
    with Progress(*columns, console=_console, transient=True, disable=hidden) as progress:
        task = progress.add_task(description, total=total)
        yield lambda completed: progress.update(task, completed=completed)


@contextlib.contextmanager
def following(
    description: str, total: int, completed: Callable[[], int], *, shown: bool = True
) -> Iterator[None]:
    """A bar over work that is done elsewhere, asked every second how many are done."""
    over = threading.Event()
    with bar(description, total, shown=shown) as update:

        def follow() -> None:
            while not over.wait(1):
                update(completed())

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
