"""Runs a sampler: a table of weights under one `lax.scan`.

The samplers of `fmv2.diffusion.samplers` are linear in what they see. With state x, clean estimate
x̂0 and previous clean estimate x̂0⁻, every step is

    x̂0 = a x + b net(c x, t)        x ← d x + e x̂0 + f x̂0⁻ + g noise

so a sampler is its table of (t, a … g), one row per step. The table is an argument of the compiled
program: another sampler of as many steps compiles nothing anew unless it alone draws noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

Denoise = Callable[[Float[Array, "*shape"], Float[Array, ""]], Float[Array, "*shape"]]
Column = Float[np.ndarray, "steps"]


class StepTable(NamedTuple):
    """The weights of every step; float32."""

    timestep: Column  # training step, as the net is told it; may be fractional
    input_scale: Column  # state → net input of unit variance
    x0_from_latents: Column
    x0_from_output: Column
    latents: Column
    x0: Column
    previous_x0: Column
    noise: Column
    alpha: Column  # the state before the step is alpha x0 + sigma ε
    sigma: Column


class State(NamedTuple):
    """What one step leaves for the next."""

    latents: Float[Array, "*shape"]
    x0: Float[Array, "*shape"]


class Trajectory(NamedTuple):
    """What each step leaves behind."""

    latents: Float[Array, "steps *shape"]  # the state after the step
    x0: Float[Array, "steps *shape"]  # the clean latents it foresaw: the better preview


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "init_noise_sigma"],
    meta_fields=["stochastic"],
)
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler bound to a schedule and a number of steps; a pytree, fit to pass through jit."""

    table: StepTable
    init_noise_sigma: float | None  # std of the state that is pure noise; None when starting midway
    stochastic: bool  # draws noise at each step

    def initial_latents(
        self, noise: Float[Array, "*shape"], x0: Float[Array, "*shape"] | None = None
    ) -> Float[Array, "*shape"]:
        """The state to sample from: pure noise, or given latents noised to the first step's level.

        Args:
          noise: standard normal.
          x0: VAE latents, scaled (unit variance), to start from.
        Raises:
          ValueError: no x0 though sampling starts midway.
        """
        if x0 is not None:
            return self.table.alpha[0] * x0 + self.table.sigma[0] * noise
        if self.init_noise_sigma is None:
            raise ValueError(
                "a sampler that starts midway needs x0, got None: "
                "give the latents to start from, or build the sampler with start=0"
            )
        return self.init_noise_sigma * noise


def sample(
    denoise: Denoise,
    latents: Float[Array, "*shape"],
    sampler: Sampler,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*shape"]:
    """Runs the sampler and returns clean latents, float32.

    Args:
      denoise: (net input, timestep) → the net's output with guidance, as the schedule's
        `prediction_type` says. The input is float32 of the latents' shape, the timestep a float32
        scalar.
      latents: the initial state, from `Sampler.initial_latents`; any shape.
      sampler: from `fmv2.diffusion.samplers`.
      key: for a stochastic sampler, see `step_noise`; others ignore it.
    Raises:
      ValueError: a stochastic sampler without key.
    """
    return _run(denoise, latents, sampler, key, lambda latents, x0: None)[0]


def sample_trajectory(
    denoise: Denoise,
    latents: Float[Array, "*shape"],
    sampler: Sampler,
    *,
    key: PRNGKeyArray | None = None,
) -> Trajectory:
    """As `sample`, but returns every step: `sample` gives this one's `latents[-1]`."""
    return _run(denoise, latents, sampler, key, Trajectory)[1]


def _run(
    denoise: Denoise,
    latents: Float[Array, "*shape"],
    sampler: Sampler,
    key: PRNGKeyArray | None,
    keep: Callable[[Float[Array, "*shape"], Float[Array, "*shape"]], Any],
) -> tuple[Float[Array, "*shape"], Any]:
    """The last state, and what `keep` made of each step's (latents, x0), stacked."""
    if sampler.stochastic and key is None:
        raise ValueError(
            "this sampler draws noise at each step, got key=None: give key=jax.random.key(seed)"
        )
    noise_key = key if sampler.stochastic else None

    def advance(state, row_and_index):
        row, index = row_and_index
        noise = None if noise_key is None else step_noise(noise_key, index, latents.shape)
        state = step(denoise, state, row, noise)
        return state, keep(*state)

    rows = (sampler.table, jnp.arange(len(sampler.table.timestep)))
    (latents, _), kept = jax.lax.scan(advance, first_state(latents), rows)
    return latents, kept


def first_state(latents: Float[Array, "*shape"]) -> State:
    """The state before the first step."""
    latents = latents.astype(jnp.float32)
    return State(latents, jnp.zeros_like(latents))


def step(
    denoise: Denoise, state: State, row: Any, noise: Float[Array, "*shape"] | None = None
) -> State:
    """One step by itself, for who has a word to say between two of them.

    Args:
      denoise: as in `sample`.
      state: from the step before, or `first_state`.
      row: of the sampler's `StepTable`.
      noise: standard normal, of a stochastic sampler.
    """
    output = denoise(row.input_scale * state.latents, row.timestep)
    x0 = row.x0_from_latents * state.latents + row.x0_from_output * output
    latents = row.latents * state.latents + row.x0 * x0 + row.previous_x0 * state.x0
    if noise is not None:
        latents += row.noise * noise
    return State(latents, x0)


def step_noise(
    key: PRNGKeyArray, index: int | Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "*shape"]:
    """What a stochastic sampler draws at step `index`: `normal(fold_in(key, index), shape)`.

    Args:
      key: one, or one per picture along the first axis, so that none depends on its neighbours.
    """
    if key.ndim:
        return jax.vmap(lambda own: step_noise(own, index, shape[1:]))(key)
    return jax.random.normal(jax.random.fold_in(key, index), shape)
