"""Bytes as the nets want them, in float32, and what two of the nets make of a face."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from fmv2.models.arcface import ArcFace, normalize
from fmv2.models.clip_vision import CLIPVisionModelWithProjection

# Of CLIP's image processor, per channel of [0, 1].
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def image_input(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """[-1, 1]: what the VAE encodes, and what ArcFace sees."""
    return image.astype(jnp.float32) / 127.5 - 1


def shading_input(shading: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """[0, 1]."""
    return shading.astype(jnp.float32) / 255


def clip_input(face: UInt8[Array, "b h w 3"], size: int) -> Float[Array, "b size size 3"]:
    """Normalised as CLIP's image tower learnt."""
    pixels = resize(face.astype(jnp.float32), size) / 255
    return (pixels - jnp.array(_CLIP_MEAN)[None, None, None]) / jnp.array(_CLIP_STD)[
        None, None, None
    ]


def resize(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Square images at another size, antialiased; as they are where they have it."""
    if images.shape[1:3] == (size, size):
        return images
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images, shape, "bilinear", antialias=True)


def keep(values: Float[Array, "b ..."], dropped: Bool[Array, " b"]) -> Float[Array, "b ..."]:
    """Zeros where dropped."""
    return jnp.where(dropped.reshape(-1, *[1] * (values.ndim - 1)), 0, values)


def face_identity(encoder: ArcFace, face: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """Embeddings of unit length of aligned faces."""
    return normalize(encoder(resize(image_input(face), encoder.config.image_size)))


def face_features(
    encoder: CLIPVisionModelWithProjection,
    face: UInt8[Array, "b h w 3"],
    dropped: Bool[Array, " b"] | None = None,
) -> Float[Array, "b t d"]:
    """What the adapter's resampler looks at: hidden states -2 of aligned faces; where dropped, of
    pixels that are zero after normalising."""
    pixels = clip_input(face, encoder.config.image_size)
    return encoder.hidden_state(pixels if dropped is None else keep(pixels, dropped), -2)
