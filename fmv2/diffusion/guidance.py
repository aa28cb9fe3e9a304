"""Classifier-free guidance, with the rescale that keeps strong guidance from overexposing."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float


def guide(
    unconditional: Float[Array, "b ..."],
    conditional: Float[Array, "b ..."],
    *,
    scale: float | Float[Array, ""],
    rescale: float | Float[Array, ""] = 0.0,
) -> Float[Array, "b ..."]:
    """unconditional + scale (conditional - unconditional), with its spread reined in; float32.

    Args:
      unconditional: the net's output without the condition.
      conditional: the net's output with it.
      scale: 1 is the conditional output itself.
      rescale: in [0, 1]; how far each image's standard deviation is moved to that of its
        conditional output.
    Raises:
      ValueError: the two outputs differ in shape.
    Source: Ho & Salimans 2022, eq. 6 (scale = 1 + w), and Lin et al. 2023, eqs. 15-16; the
      latter equals diffusers' rescale_noise_cfg. Lin et al. advise 0.7 at zero terminal SNR.
    """
    if unconditional.shape != conditional.shape:
        raise ValueError(
            "unconditional and conditional must agree in shape, "
            f"got {unconditional.shape} and {conditional.shape}"
        )
    # The scale would magnify the rounding of a narrower difference.
    unconditional, conditional = (x.astype(jnp.float32) for x in (unconditional, conditional))
    guided = unconditional + scale * (conditional - unconditional)
    per_image = tuple(range(1, guided.ndim))
    std = partial(jnp.std, axis=per_image, keepdims=True)
    spread = std(conditional) / std(guided)
    return guided * (1 - rescale + rescale * spread)
