"""Text and image encoder, taught to find each other's partner in a batch.

Paper: Radford et al. 2021 (CLIP). Each caption is held against whole pictures and, by itself,
against aligned faces: both are what the image encoder is used on, as a measure and as the ID
adapter's eye.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.inputs import clip_input
from fmv2.models.clip_text import CLIPTextConfig
from fmv2.models.clip_vision import CLIPVisionConfig
from train.heads import ContrastHeadConfig

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Two terms of one form: text against pictures, text against faces."""

    text_encoder: CLIPTextConfig = dataclasses.field(default_factory=CLIPTextConfig.embedded)
    """Of a text encoder that begins afresh."""
    image_encoder: CLIPVisionConfig = dataclasses.field(default_factory=CLIPVisionConfig.embedded)
    """Of an image encoder that begins afresh."""

    trained = ("text_encoder", "image_encoder", "contrast_head")
    frozen = ()
    extras = ()

    def grids(self, size: int) -> tuple[int, ...]:
        """None: it looks at no masks."""
        return ()

    def fresh(self, configs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Both encoders, and a head that fits those that are there."""
        text = configs.get("text_encoder", self.text_encoder)
        image = configs.get("image_encoder", self.image_encoder)
        head = ContrastHeadConfig(hidden_size=text.hidden_size, projection_dim=image.projection_dim)
        return {"text_encoder": text, "image_encoder": image, "contrast_head": head}

    def loss(
        self,
        trained: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Batch,
        key: Array,
        schedule: NoiseSchedule,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean of both terms, and each by itself with how often the right partner is nearest.

        Args:
          trained: both encoders and the head, with float32 weights.
          frozen: nothing.
          batch: whose captions are there; every sample of all devices is held against every other.
          key: not used.
          schedule: not looked at.
        """
        encoder, head = trained["image_encoder"], trained["contrast_head"]
        texts = head.text_projection(trained["text_encoder"](batch.input_ids).pooled)
        alike = (batch.input_ids[:, None] == batch.input_ids[None]).all(axis=-1)
        metrics: Metrics = {}
        for view, pixels in (("picture", batch.image), ("face", batch.face)):
            images = encoder(clip_input(pixels, encoder.config.image_size)).image_embeds
            term, accuracy = info_nce(texts, images, head.scale, alike)
            metrics |= {view: term, f"{view}_accuracy": accuracy}
        loss = (metrics["picture"] + metrics["face"]) / 2
        return loss, {"loss": loss, **metrics, "scale": head.scale}


def info_nce(
    texts: Float[Array, "b d"],
    images: Float[Array, "b d"],
    scale: Float[Array, ""],
    alike: Bool[Array, "b b"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How surely each text finds its image among all, and each image its text.

    Args:
      texts: of any length; row i belongs to row i of the images.
      images: likewise.
      scale: of the cosines.
      alike: pairs whose texts are the same; they are no wrong partners, and so are left out.
    Returns:
      the mean cross entropy of both ways, in nats; the share of texts whose image is the nearest.
    Source: Radford et al. 2021, figure 3.
    """
    texts, images = _unit(texts), _unit(images)
    own = jnp.eye(len(texts), dtype=bool)
    logits = scale * jnp.matmul(texts, images.T, precision="highest")
    logits = jnp.where(alike & ~own, -jnp.inf, logits)
    right = jnp.diagonal(logits)
    loss = (jax.nn.logsumexp(logits, axis=0) + jax.nn.logsumexp(logits, axis=1)) / 2 - right
    return loss.mean(), (logits.argmax(axis=1) == jnp.arange(len(texts))).mean()


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))
