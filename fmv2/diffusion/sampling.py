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
from jaxtyping import Array, Float, PRNGKeyArray

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


class Trajectory(NamedTuple):
    """What each step leaves behind."""

    latents: Float[Array, "steps *shape"]  # the state after the step
    x0: Float[Array, "steps *shape"]  # the clean latents it foresaw: the better preview


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "alpha", "sigma", "init_noise_sigma"],
    meta_fields=["stochastic"],
)
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler bound to a schedule and a number of steps; a pytree, fit to pass through jit."""

    table: StepTable
    alpha: float  # the first state is alpha x0 + sigma ε
    sigma: float
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
            return self.alpha * x0 + self.sigma * noise
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
      key: for a stochastic sampler, whose step i draws `normal(fold_in(key, i), shape)`; others
        ignore it.
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

    def step(state, row_and_index):
        latents, previous_x0 = state
        row, index = row_and_index
        output = denoise(row.input_scale * latents, row.timestep)
        x0 = row.x0_from_latents * latents + row.x0_from_output * output
        latents = row.latents * latents + row.x0 * x0 + row.previous_x0 * previous_x0
        if noise_key is not None:
            noise = jax.random.normal(jax.random.fold_in(noise_key, index), latents.shape)
            latents += row.noise * noise
        return (latents, x0), keep(latents, x0)

    latents = latents.astype(jnp.float32)
    rows = (sampler.table, jnp.arange(len(sampler.table.timestep)))
    (latents, _), kept = jax.lax.scan(step, (latents, jnp.zeros_like(latents)), rows)
    return latents, kept
