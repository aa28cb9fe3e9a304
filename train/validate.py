"""The loss on records that are never trained on, always with the same noise and timesteps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from fmv2.parallel import under
from train.run import VALIDATION, Run
from train.step import TrainState


def averaged(state: TrainState) -> Any:
    """The running mean of the weights; the weights where none is kept."""
    return state.params if state.ema is None else state.ema


def make_validation(run: Run) -> Callable[[TrainState], Mapping[str, float]] | None:
    """What gives a state's loss terms, the mean over the first batches of the validation split.

    Nothing is left to chance, so that two states, or two runs, can be compared: the batches, what
    is dropped (nothing), noise and timesteps are always the same.

    Returns:
      None where the data set has no such split.
    """
    if not run.dataset.splits.get(VALIDATION):
        return None

    def loss(params, stats, frozen, batch, key):
        trained = nnx.merge(run.graph, params, stats)
        return run.config.objective.loss(trained, frozen, batch, key, run.schedule)[1]

    compiled = jax.jit(under(run.mesh, loss))

    def validate(state: TrainState) -> Mapping[str, float]:
        rows = []
        with run.loader(VALIDATION) as loader:
            for number in range(run.config.report.validation_batches):
                key = jax.random.fold_in(jax.random.key(0), number)
                batch = next(loader)
                rows.append(compiled(averaged(state), state.stats, run.frozen, batch, key))
        rows = jax.device_get(rows)
        return {
            f"validation/{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]
        }

    return validate
