"""What a run may train that is no part of a model: in checkpoints, and in no model folder.

Heads are of no use once the net beside them has learnt; the scorer judges models, and has a folder
of its own. A run's objective names them among what it trains, like components of the model.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from convert.components import COMPONENTS
from fmv2.metrics.scorer import Scorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCentersConfig:
    """The shape of `ClassCenters`."""

    classes: int
    embedding_size: int


class ClassCenters(nnx.Module):
    """A direction for each person, which the embeddings of their faces are drawn to.

    Source: the weight of the last layer in Deng et al. 2019 (ArcFace).
    """

    def __init__(
        self,
        config: ClassCentersConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = config
        shape = (config.classes, config.embedding_size)
        self.centers = nnx.Param(0.01 * jax.random.normal(rngs.params(), shape, param_dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastHeadConfig:
    """The shape of `ContrastHead`."""

    hidden_size: int
    """Of the text encoder."""
    projection_dim: int


class ContrastHead(nnx.Module):
    """The text's projection into the space that texts and images share, and the temperature.

    Source: Radford et al. 2021 (CLIP), figure 3 and section 2.5.
    """

    def __init__(
        self,
        config: ContrastHeadConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.text_projection = nnx.Linear(
            config.hidden_size,
            config.projection_dim,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.log_scale = nnx.Param(jnp.full((), math.log(1 / 0.07), param_dtype))

    @property
    def scale(self) -> Float[Array, ""]:
        """What cosines are multiplied by: the inverse of the temperature, at most 100."""
        return jnp.exp(jnp.minimum(self.log_scale[...].astype(jnp.float32), math.log(100)))


HEADS = {"class_centers": ClassCenters, "contrast_head": ContrastHead, "scorer": Scorer}


def net_class(name: str) -> Any:
    """The class of a component or head."""
    return COMPONENTS[name].net if name in COMPONENTS else HEADS[name]
