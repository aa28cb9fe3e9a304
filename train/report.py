"""What a person sees of a run: a live line on a terminal, plain lines elsewhere, and files.

Only process 0 shows and writes anything. Times are those between steps that have landed; what is
done beside training (checkpoints, validation, samples) does not count.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from train.flops import step_flops
from train.hardware import chip
from train.optimizer import learning_rate
from train.run import Run
from train.sinks import Sink, open_sinks

_SPEED = ("images_per_second", "seconds_per_step", "waiting", "mfu")


class Report:
    """Told of every step; use it in a `with` block."""

    def __init__(self, run: Run, console: Console, first: int):
        """
        Args:
          console: for what passes by; the last word is the loop's.
          first: steps made before.
        """
        self._config = run.config
        self._console = console
        self._shown = jax.process_index() == 0
        self._sinks: list[Sink] = open_sinks(run.config, first) if self._shown else []
        self._rate = learning_rate(run.config.optimizer, run.config.steps)
        known = chip(jax.devices()[0].device_kind)
        peak = None if known is None else known.flops * jax.device_count()
        self._share = None if peak is None else step_flops(run.config, run.shapes).total / peak
        """Seconds that a step would take at the chips' peak."""
        self._rows: list[Mapping[str, float]] = []
        self._begin, self._waited = time.monotonic(), 0.0
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not (self._shown and console.is_terminal),
        )
        self._task = self._progress.add_task("compiling", total=run.config.steps, completed=first)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        for sink in self._sinks:
            sink.close()

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        """A step that has landed, and its loss terms; shown in the mean of `log_every` steps."""
        self._rows.append(metrics)
        every = self._config.report.log_every
        if not (every and (number % every == 0 or number == self._config.steps)):
            self._progress.update(self._task, completed=number)
            return
        terms = {name: float(np.mean([row[name] for row in self._rows])) for name in metrics}
        speed = self._speed()
        self._rows.clear()
        with jax.default_device(jax.local_devices(backend="cpu")[0]):  # beside the steps at work
            terms["learning_rate"] = float(np.asarray(self._rate(number - 1)))
        line = _line(terms | speed)
        self._progress.update(self._task, completed=number, description=line)
        if not self._console.is_terminal:
            left = (self._config.steps - number) * speed["seconds_per_step"]
            self.say(f"step {number}/{self._config.steps}  {line}  {_duration(left)} left")
        self.scalars(number, terms | speed)

    def scalars(self, number: int, values: Mapping[str, float]) -> None:
        """Into the files."""
        for sink in self._sinks:
            sink.scalars(number, values)

    def image(self, number: int, name: str, pixels: np.ndarray) -> None:
        """Into those that take pictures; (h, w, 3) bytes."""
        for sink in self._sinks:
            sink.image(number, name, pixels)

    def say(self, text: str) -> None:
        """A line above the live one."""
        if self._shown:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is no training, with nothing in flight."""
        begin = time.monotonic()
        yield
        self._begin += time.monotonic() - begin

    def _speed(self) -> dict[str, float]:
        now, steps = time.monotonic(), len(self._rows)
        spent, waited = now - self._begin, self._waited
        self._begin, self._waited = now, 0.0
        seconds = spent / steps
        speed = {
            "images_per_second": self._config.batch_size / seconds,
            "seconds_per_step": seconds,
            "waiting": waited / spent,
        }
        if self._share is not None:
            speed["mfu"] = self._share / seconds
        return speed


def _line(values: Mapping[str, Any]) -> str:
    """Loss terms as they are called, then how fast it goes."""
    terms = [f"{name} {value:.4g}" for name, value in values.items() if name not in _SPEED]
    terms.append(f"{values['images_per_second']:.3g} images/s")
    terms.append(f"{_duration(values['seconds_per_step'])}/step")
    if "mfu" in values:
        terms.append(f"MFU {values['mfu']:.0%}")
    return "  ".join([*terms, f"data-wait {values['waiting']:.0%}"])


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"
