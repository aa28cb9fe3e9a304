"""What the tests of the base's objectives share: nets made afresh, and a few steps of learning."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from train.heads import net_class
from train.optimizer import OptimizerConfig, make_optimizer
from train.step import Objective, TrainState, init_state, make_step, split

SCHEDULE = NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def fresh_nets(objective: Objective, configs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The nets that the objective trains, without a base."""
    shapes = objective.fresh(configs or {})
    return {
        name: net_class(name)(shapes[name], rngs=nnx.Rngs(i))
        for i, name in enumerate(objective.trained)
    }


def learn(
    objective: Objective,
    nets: Mapping[str, Any],
    batch: Batch,
    frozen: Mapping[str, Any] = {},
    *,
    steps: int = 30,
    rate: float = 3e-3,
) -> tuple[list[dict[str, float]], TrainState]:
    """The metrics of each step on one batch, and the last state."""
    config = OptimizerConfig(learning_rate=rate, weight_decay=0.0, ema_decay=None)
    optimizer = make_optimizer(config, steps)
    step = jax.jit(make_step(objective, split(nets)[0], optimizer, config, SCHEDULE))
    state = init_state(nets, optimizer, config, 0)
    history = []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return history, state


def mean(history: list[dict[str, float]], name: str = "loss") -> float:
    """Of a metric, over some steps."""
    return float(np.mean([metrics[name] for metrics in history]))


def unmoved(nets: Mapping[str, Any], state: TrainState) -> list[str]:
    """Weights that learning has left as they were: no gradient has reached them."""
    before, after = (nnx.to_flat_state(x) for x in (split(nets)[1], state.params))
    return [
        ".".join(map(str, path))
        for (path, old), (_, new) in zip(before, after, strict=True)
        if np.array_equal(old[...], new[...])
    ]
