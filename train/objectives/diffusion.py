"""What all objectives of a denoiser share: latents, noise and timesteps of a batch."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from data.loader import Extra
from data.schema import Batch
from fmv2.inputs import image_input
from fmv2.models.vae import AutoencoderKL, AutoencoderKLConfig, Moments

LatentSource = Literal["vae", "record"]
"""Encode the picture at each step, or read the VAE's moments from the record."""


class Chance(NamedTuple):
    """All that is random in the loss of a batch."""

    latents: Float[Array, "b h w c"]
    """Standard normal: where in the VAE's distribution each picture's latents lie."""
    noise: Float[Array, "b h w c"]
    """Standard normal: what is added to them."""
    timesteps: Int[Array, " b"]


def draw_chance(
    vae: AutoencoderKLConfig,
    batch: Batch,
    key: Array,
    timesteps: Callable[[Array, int], Int[Array, " b"]],
) -> Chance:
    """Chance for a batch of pictures whose sides this VAE divides.

    Args:
      timesteps: draws as many as it is told with the key that it is given.
    """
    count, height, width, _ = batch.image.shape
    shape = (count, height // vae.downscale, width // vae.downscale, vae.latent_channels)
    latents, noise, times = jax.random.split(key, 3)
    return Chance(
        latents=jax.random.normal(latents, shape),
        noise=jax.random.normal(noise, shape),
        timesteps=timesteps(times, count),
    )


def latent_extras(source: LatentSource) -> tuple[Extra, ...]:
    """Optional fields of the batch that `scaled_latents` reads."""
    return ("latent_moments",) if source == "record" else ()


def scaled_latents(
    vae: AutoencoderKL, batch: Batch, noise: Float[Array, "b h w c"], source: LatentSource
) -> Float[Array, "b h w c"]:
    """The pictures' latents at unit variance, float32.

    Args:
      noise: standard normal, to draw from their distribution.
    """
    if source == "record":
        assert batch.latent_moments is not None  # the objective's extras name it
        moments = jnp.split(batch.latent_moments, 2, axis=-1)
    else:
        moments = vae.encode(image_input(batch.image))
    mean, logvar = (x.astype(jnp.float32) for x in moments)
    return vae.config.scale(Moments(mean, logvar).at(noise))
