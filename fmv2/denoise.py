"""Face-MakeUpV2 at work: the nets as one denoiser, the pictures it ends in, and where it looks.

The trainer's samples and `fmv2.pipeline` draw by this, so that there is one way to draw.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from fmv2.diffusion.guidance import guide
from fmv2.diffusion.sampling import Denoise
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.models.transformer import AttentionMaps
from fmv2.models.unet import UNetOutput
from fmv2.models.vae import AutoencoderKL

LOOK_AT = 0.4
"""Where in the schedule attention is looked at: late enough for a layout, early enough to need
text."""


class Channels(NamedTuple):
    """What steers b pictures, each in g ways: guidance's (without, with), or the one with alone.

    A channel that is None is not computed at all, so that what is left is the base model's very
    program.
    """

    context: Float[Array, "b g t d"]
    """The text encoder's states."""
    id_tokens: Float[Array, "b g n d"] | None = None
    """Of the identity; they are the ShadingNet's context too."""
    shading: Float[Array, "b H W 3"] | None = None
    """In [0, 1]; None leaves the ShadingNet out."""
    id_scale: float | Float[Array, ""] | None = 1.0
    """Of the attention to the ID tokens; None leaves out the adapter, its LoRA too."""
    shading_scale: float | Float[Array, ""] | Float[Array, " g"] = 1.0
    """Of all ways, or of each."""


def predict(
    nets: Mapping[str, Any],
    channels: Channels,
    latents: Float[Array, "b h w c"],
    timestep: Float[Array, ""],
    *,
    attention_at: tuple[int, ...] = (),
) -> UNetOutput:
    """What the U-Net says of each picture in each way, picture by picture: (b·g, h, w, c).

    Args:
      nets: `unet`, and `adapter` and `shadingnet` where the channels need them.
      channels: of these pictures.
      latents: noisy, scaled as the scheduler asks.
      timestep: of all pictures.
      attention_at: sides of the grids whose text attention is returned.
    """
    pictures, ways = channels.context.shape[:2]
    context = _flat(channels.context)
    # In the compute dtype of whoever made the context; the steps between are float32.
    x = jnp.repeat(latents, ways, axis=0).astype(context.dtype)
    times = jnp.broadcast_to(timestep, (pictures * ways,))
    tokens = None if channels.id_tokens is None else _flat(channels.id_tokens)
    given: dict[str, Any] = {}
    if channels.shading is not None:
        shading = jnp.repeat(channels.shading, ways, axis=0)
        scales = jnp.tile(_each(channels).astype(x.dtype), pictures)[:, None, None, None]
        given["residuals"] = nets["shadingnet"](x, times, tokens, shading, scales)
    if tokens is not None and channels.id_scale is not None:
        given |= {"adapter": nets["adapter"], "id_tokens": tokens, "scale": channels.id_scale}
    return nets["unet"](x, times, context, attention_at=attention_at, **given)


def denoiser(
    nets: Mapping[str, Any], channels: Channels, guidance_scale: float | Float[Array, ""]
) -> Denoise:
    """What a sampler asks at each step; `guidance_scale` counts where there are two ways."""

    def denoise(latents, timestep):
        noise = predict(nets, channels, latents, timestep).noise
        if channels.context.shape[1] == 1:
            return noise.astype(jnp.float32)
        without, given = jnp.moveaxis(noise.reshape(len(latents), 2, *noise.shape[1:]), 1, 0)
        return guide(without, given, scale=guidance_scale)

    return denoise


def paint(vae: AutoencoderKL, latents: Float[Array, "b h w c"]) -> UInt8[Array, "b H W 3"]:
    """The pictures of clean latents at unit variance, RGB."""
    pixels = vae.decode(vae.config.unscale(latents)).astype(jnp.float32)
    return jnp.clip(jnp.round((pixels + 1) * 127.5), 0, 255).astype(jnp.uint8)


def look(
    nets: Mapping[str, Any],
    channels: Channels,
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    schedule: NoiseSchedule,
) -> Float[Array, "b q t"]:
    """How much each place of pictures attends to each token of their text: the mean over heads and
    over the layers of half the latents' resolution, at LOOK_AT of the schedule.

    Args:
      latents: clean, at unit variance; square.
      noise: standard normal; what is laid over them.
    Raises:
      ValueError: the U-Net has no cross-attention there.
    """
    timestep = jnp.full(len(latents), int(LOOK_AT * schedule.num_train_timesteps))
    noisy = schedule.add_noise(latents, noise, timestep)
    tokens = channels.id_tokens
    told = channels._replace(
        context=channels.context[:, -1:],
        id_tokens=None if tokens is None else tokens[:, -1:],
        shading_scale=_each(channels)[-1:],
    )
    grid = -(-latents.shape[1] // 2)  # as a convolution of stride 2 rounds
    seen = predict(nets, told, noisy, timestep, attention_at=(grid,)).attention
    return _mean(seen, grid)


def phrase_maps(
    attention: Float[Array, "b q t"], token_mask: Bool[Array, "b k t"]
) -> Float[Array, "b k g g"]:
    """Attention to each phrase's tokens from `look`, the largest of each map 1."""
    of_phrase = jnp.einsum("bqt,bkt->bkq", attention, token_mask.astype(jnp.float32))
    side = round(of_phrase.shape[-1] ** 0.5)
    largest = of_phrase.max(axis=-1, keepdims=True)
    of_phrase = of_phrase / jnp.maximum(largest, 1e-12)
    return of_phrase.reshape(*of_phrase.shape[:2], side, side)


def _each(channels: Channels) -> Float[Array, " g"]:
    """The shading map's scale in each way."""
    return jnp.broadcast_to(jnp.asarray(channels.shading_scale), channels.context.shape[1:2])


def _mean(attention: AttentionMaps, grid: int) -> Float[Array, "b q t"]:
    if not attention:
        raise ValueError(f"the U-Net has no cross-attention of {grid}x{grid} places")
    return jnp.mean(jnp.stack([maps.mean(axis=1) for maps in attention.values()]), axis=0)


def _flat(x: Float[Array, "b g ..."]) -> Float[Array, "b*g ..."]:
    return x.reshape(-1, *x.shape[2:])
