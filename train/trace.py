"""A window of steps for TensorBoard's profiler."""

import jax
from etils import epath

from train.config import TrainConfig


class Trace:
    """Records from one step to another, on process 0."""

    def __init__(self, config: TrainConfig):
        assert config.out is not None
        self._folder = epath.Path(config.out) / "profile"
        self._window = config.report.profile if jax.process_index() == 0 else None
        self._on = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def begins(self, step: int) -> None:
        """To be called before a step is dispatched."""
        if self._window is not None and not self._on and step == self._window[0]:
            jax.profiler.start_trace(self._folder)
            self._on = True

    def landed(self, step: int) -> None:
        """To be called when a step has been computed."""
        if self._window is not None and step >= self._window[1]:
            self._stop()

    def _stop(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
