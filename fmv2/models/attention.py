"""Scaled dot-product attention: one function, its implementations behind one typed choice.

Source: Vaswani et al. 2017, eq. 1. The flash kernels are JAX's own: cuDNN's through
`jax.nn.dot_product_attention`; on TPU it is ours, `fmv2.models.flash`.
"""

import math
from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from fmv2.models.layers import LANES
from fmv2.parallel import BATCH_AXES

AttentionChoice = Literal["auto", "xla", "cudnn", "pallas"]

# Of fewer queries XLA's own attention is as good: its probabilities stay small, and it fuses.
MIN_FLASH_TOKENS = 1024


def attention(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    *,
    causal: bool = False,
    implementation: AttentionChoice = "auto",
) -> Float[Array, "b q heads d"]:
    """softmax(q kᵀ / sqrt(d)) v, with logits and softmax in float32.

    Args:
      query: in the compute dtype, like key and value.
      key: of the attended tokens.
      value: of the attended tokens.
      causal: token i attends to tokens 0..i alone.
      implementation: the kernel for long sequences. `auto` is the flash kernel of the backend
        at hand: cuDNN on GPU in half precision, Pallas on TPU. A program compiled ahead of time for
        another machine names it. Short sequences and few keys always go to XLA, where flash gains
        nothing, and on GPU so does cross-attention.
    Raises:
      ValueError: an unknown implementation.
    """
    if implementation not in get_args(AttentionChoice):
        raise ValueError(
            f"attention must be one of {get_args(AttentionChoice)}, got {implementation!r}"
        )
    kernel = _kernel(query, key, causal, implementation)
    if kernel == "pallas":
        return _pallas(query, key, value)
    if kernel == "xla" and query.dtype == jnp.float32:
        return _divided_last(query, key, value, causal)
    if kernel == "cudnn" or causal:
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation=kernel
        )
    probabilities = attention_probabilities(query, key).astype(value.dtype)
    return (probabilities @ value.swapaxes(1, 2)).swapaxes(1, 2)


def _divided_last(query, key, value, causal):
    """Scale and softmax's denominator on what is d wide instead of the logits, which XLA on CPU
    would go over once more for each: a fifth less time, forward and backward."""
    query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key)
    if causal:
        logits = jnp.where(jnp.tri(*logits.shape[-2:], dtype=bool)[None, None], logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    return (weights @ value / weights.sum(axis=-1, keepdims=True)).swapaxes(1, 2)


def attention_probabilities(
    query: Float[Array, "b q heads d"], key: Float[Array, "b k heads d"]
) -> Float[Array, "b heads q k"]:
    """softmax(q kᵀ / sqrt(d)) in float32, for what looks at the maps themselves."""
    # Heads first: as they come, XLA on CPU takes more than twice as long for the products.
    query, key = query.swapaxes(1, 2), key.swapaxes(1, 2)
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)


def for_tpu(implementation: AttentionChoice) -> bool:
    """Whether the program is a TPU's. One that is compiled ahead of time for another machine than
    this says so by the kernel it names."""
    auto = implementation == "auto"
    return jax.default_backend() == "tpu" if auto else implementation == "pallas"


def _kernel(query, key, causal, implementation) -> Literal["xla", "cudnn", "pallas"]:
    tokens, head_dim = query.shape[1], query.shape[3]
    if tokens < MIN_FLASH_TOKENS or causal or head_dim > 256:
        return "xla"
    wanted = jax.default_backend() if implementation == "auto" else implementation
    # It fills up keys to whole registers: of an identity's few, XLA makes less.
    enough = key.shape[1] >= LANES // 2
    if wanted in ("tpu", "pallas") and enough and tokens % LANES == 0:
        return "pallas"
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    own = key.shape[1] == tokens
    if wanted in ("gpu", "cudnn") and half and own and head_dim % 8 == 0:
        return "cudnn"
    return "xla"


def _pallas(query, key, value):
    # Late: Pallas takes a second to import, and only a program for TPU needs it.
    from fmv2.models.flash import flash_attention

    tokens_last = [x.transpose(0, 2, 3, 1) for x in (query, key, value)]
    return _on_each_device(flash_attention, tokens_last).transpose(0, 3, 1, 2)


def _on_each_device(kernel, tokens_last):
    """A Pallas call is opaque to the partitioner: each device is told to work on its own part.

    Samples and heads lie as `fmv2.parallel` lays them; what does not divide is on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return cast(jax.Array, kernel(*tokens_last))
    batch, heads = tokens_last[0].shape[:2]
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    spec = PartitionSpec(
        BATCH_AXES if batch % ways == 0 else None,
        "tensor" if heads % mesh.shape["tensor"] == 0 else None,
    )
    parts = jax.shard_map(kernel, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return cast(jax.Array, parts(*tokens_last))
