"""Ending a run early without losing a step: Ctrl-C, SIGTERM, and the preemption of a machine."""

import os
import signal
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Stop:
    """Hears signals while its `with` block lasts; a second Ctrl-C ends the program at once.

    Among several hosts JAX' preemption service agrees on one step for all of them. It hears SIGTERM
    on any host, which is what clouds send before they take a machine; Ctrl-C is passed on as such.
    """

    def __init__(self):
        self._heard: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        alone = jax.process_count() == 1
        for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
            self._before[number] = signal.signal(number, self._hear if alone else _pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> int | None:
        """The signal that asks to end after this step; the same on all hosts.

        Args:
          step: grows from call to call, and every host must call.
        """
        if jax.process_count() == 1:
            return self._heard
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None

    def pass_on(self) -> None:
        """Sends what was heard too late for any step once more, to whoever hears it now: the work
        that this was a part of is to end, too. After the `with` block."""
        if self._heard is not None:
            os.kill(os.getpid(), self._heard)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._heard = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _pass_on(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
