"""One training step: a pure function of state, frozen nets and batch.

Only what learns is differentiated, so that no gradient of a frozen weight exists anywhere.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from train.optimizer import OptimizerConfig, ema_decay

Nets = Mapping[str, nnx.Module]
Metrics = dict[str, Float[Array, ""]]


class Objective(Protocol):
    """What a step minimises; see the modules of `train.objectives`."""

    @property
    def trained(self) -> tuple[str, ...]:
        """The components of the model that it trains."""
        ...

    @property
    def frozen(self) -> tuple[str, ...]:
        """Those that it reads."""
        ...

    @property
    def extras(self) -> tuple[str, ...]:
        """Optional fields of the batch that it needs."""
        ...

    def grids(self, size: int) -> tuple[int, ...]:
        """Sides of the grids that it wants masks on, for images of this size."""
        ...

    def fresh(self, configs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Configs of the trained nets that begin afresh where the base lacks them, by component.

        Args:
          configs: of the base's nets.
        """
        ...

    def loss(
        self,
        trained: Nets,
        frozen: Nets,
        batch: Batch,
        key: Array,
        schedule: NoiseSchedule,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of a batch, and its terms by name."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainState:
    """All that changes from step to step, on the devices."""

    step: Int[Array, ""]
    """Updates made so far."""
    ok: Bool[Array, ""]
    """False from the first loss or gradient on that was not finite: nothing changes any more."""
    key: Array
    """The run's key; each step folds its number in."""
    params: Any
    """Trainable weights, float32."""
    stats: Any
    """Running statistics of batch norms, where the trained nets have any."""
    optimizer: optax.OptState
    ema: Any
    """The running mean of `params`; None where none is kept."""


def split(trained: Nets) -> tuple[Any, Any, Any]:
    """The nets' structure, their weights and their running statistics."""
    graph, params, stats = nnx.split(dict(trained), nnx.Param, ...)
    return graph, params, stats


def init_state(
    trained: Nets, optimizer: optax.GradientTransformation, config: OptimizerConfig, seed: int
) -> TrainState:
    """The state before the first step."""
    _, params, stats = split(trained)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        ok=jnp.ones((), bool),
        key=jax.random.key(seed),
        params=params,
        stats=stats,
        optimizer=optimizer.init(params),
        ema=None if config.ema_decay is None else jax.tree.map(jnp.copy, params),
    )


def make_step(
    objective: Objective,
    graph: Any,
    optimizer: optax.GradientTransformation,
    config: OptimizerConfig,
    schedule: NoiseSchedule,
) -> Callable[[TrainState, Nets, Batch], tuple[TrainState, Metrics]]:
    """The step of one objective.

    Args:
      objective: what is minimised.
      graph: the trained nets' structure, from `split`.
      optimizer: from `train.optimizer.make_optimizer`.
      config: the same that it was made from.
      schedule: the base model's noise schedule.
    Returns:
      a function to be jitted with its first argument donated. Its metrics are the objective's
      terms, "gradient_norm" before clipping, and "ok". When "ok" is False, those terms say which of
      them was not finite, and the `index` of the batch that was given says of which records; the
      state stays the last good one. With accumulation all are means over the micro-batches, so that
      a term which is a mean over what counts (phrases with a mask, faces with landmarks) weighs
      each micro-batch alike.
    """

    def loss(params, stats, frozen, batch, key):
        # Copied: norms write their statistics under the gradient's trace.
        trained = nnx.merge(graph, params, stats, copy=True)
        value, metrics = objective.loss(trained, frozen, batch, key, schedule)
        return value, (metrics, split(trained)[2])

    def step(state: TrainState, frozen: Nets, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), config.accumulation)

        def micro(stats, given):
            part, key = given
            gradient = jax.grad(loss, has_aux=True)
            grads, (metrics, stats) = gradient(state.params, stats, frozen, part, key)
            return stats, (grads, metrics)

        if config.accumulation == 1:
            stats, (grads, metrics) = micro(state.stats, (batch, keys[0]))
        else:
            stats, grads, metrics = _accumulate(micro, state.stats, batch, keys)
        norm = optax.tree.norm(grads)
        ok = state.ok & jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - ema_decay(config, state.step))
        stepped = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            stats=stats,
            optimizer=optimizer_state,
            ema=ema,
        )
        kept = jax.tree.map(lambda new, old: jnp.where(ok, new, old), stepped, state)
        metrics = {**metrics, "gradient_norm": norm, "ok": ok}
        return dataclasses.replace(kept, ok=ok), metrics

    return step


def _accumulate(micro, stats, batch, keys):
    """Means over micro-batches. Each takes every n-th sample, so that no sample changes device."""
    count = len(keys)

    def parts(x):
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    def body(carry, given):
        stats, sums = carry
        stats, out = micro(stats, given)
        return (stats, jax.tree.map(jnp.add, sums, out)), None

    given = (jax.tree.map(parts, batch), keys)
    shapes = jax.eval_shape(lambda: micro(stats, jax.tree.map(lambda x: x[0], given))[1])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (stats, sums), _ = jax.lax.scan(body, (stats, zeros), given)
    grads, metrics = jax.tree.map(lambda x: x / count, sums)
    return stats, grads, metrics
