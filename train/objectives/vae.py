"""The autoencoder: images to latents and back.

Papers: Kingma & Welling 2014; Rombach et al. 2022, without its adversary and its learnt perceptual
term, for which an embedded default has no net: edges take their place. Latents come out at mean 0
and variance 1 in each channel by a term of their own, so that the `scaling_factor` in the config,
1 for a fresh net, holds when training ends and nothing is left to be measured.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.inputs import image_input
from fmv2.models.vae import AutoencoderKLConfig, Moments

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE:
    """The terms and their weights; that of the pixels is 1."""

    vae: AutoencoderKLConfig = dataclasses.field(default_factory=AutoencoderKLConfig.embedded)
    """Of a net that begins afresh."""
    edge_weight: float = 1.0
    """Of the edges: without them small faces stay blurred."""
    kl_weight: float = 1e-4
    """Of each latent's distance from a standard normal: a little smoothness, no more."""
    scale_weight: float = 0.1
    """Of the distance of whole channels from one: it sets their scale, which costs nothing else."""

    trained = ("vae",)
    frozen = ()
    extras = ()

    def __post_init__(self):
        weights = ("edge_weight", "kl_weight", "scale_weight")
        if faults := [f"{name}={w}" for name in weights if (w := getattr(self, name)) < 0]:
            raise UserError(f"objective: {', '.join(faults)}: expected 0 or more")

    def grids(self, size: int) -> tuple[int, ...]:
        """None: it looks at no masks."""
        return ()

    def fresh(self, configs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The autoencoder."""
        return {"vae": self.vae}

    def loss(
        self,
        trained: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Batch,
        key: Array,
        schedule: NoiseSchedule,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted sum of the terms, and each by itself.

        Args:
          trained: the autoencoder, with float32 weights.
          frozen: nothing.
          batch: of images whose sides it divides.
          key: for the latents.
          schedule: not looked at.
        """
        vae, images = trained["vae"], image_input(batch.image)
        moments = Moments(*(x.astype(jnp.float32) for x in vae.encode(images)))
        latents = moments.at(jax.random.normal(key, moments.mean.shape))
        decoded = vae.decode(latents).astype(jnp.float32)
        scaled = vae.config.scale(latents)
        terms = {
            "pixels": jnp.abs(decoded - images).mean(),
            "edges": edge_loss(decoded, images),
            "kl": kl(moments, vae.config),
            "scale": scale_loss(scaled),
        }
        loss = (
            terms["pixels"]
            + self.edge_weight * terms["edges"]
            + self.kl_weight * terms["kl"]
            + self.scale_weight * terms["scale"]
        )
        return loss, {"loss": loss, **terms, "latent_std": scaled.std()}


def edge_loss(
    decoded: Float[Array, "b h w c"], images: Float[Array, "b h w c"]
) -> Float[Array, ""]:
    """Mean absolute difference of the steps between neighbouring pixels, along both sides."""
    error = decoded - images
    return jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()


def kl(moments: Moments, config: AutoencoderKLConfig) -> Float[Array, ""]:
    """KL of the scaled latents' distributions from a standard normal, per number, in nats."""
    mean = config.scale(moments.mean)
    logvar = moments.logvar + 2 * math.log(abs(config.scaling_factor))
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()


def scale_loss(latents: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """KL of each channel, as a normal of its moments over the whole batch, from a standard one; the
    mean over channels, in nats.

    Source: the form of Kingma & Welling 2014, appendix B, for the aggregate instead of one sample.
    """
    mean, variance = latents.mean(axis=(0, 1, 2)), latents.var(axis=(0, 1, 2))
    return 0.5 * (jnp.square(mean) + variance - 1 - jnp.log(variance + 1e-6)).mean()
