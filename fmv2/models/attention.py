"""Scaled dot-product attention: one function, its implementations behind one typed choice.

Source: Vaswani et al. 2017, eq. 1. The flash kernels are JAX's own: cuDNN's through
`jax.nn.dot_product_attention`, splash attention (Pallas) on TPU.
"""

import math
from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from fmv2.parallel import BATCH_AXES

AttentionChoice = Literal["auto", "xla", "cudnn", "splash"]

# Below this many tokens XLA's own attention is as good: its probabilities stay small, and it fuses.
MIN_FLASH_TOKENS = 1024
_SPLASH_TILE = 128

ATTENDED = "attended"
"""The name, for `jax.checkpoint`'s policies, of what a gradient would call the kernel again for."""


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
      implementation: the kernel for long self-attention. `auto` is the flash kernel of the backend
        at hand: cuDNN on GPU in half precision, splash on TPU. A program compiled ahead of time for
        another machine names it. Short sequences and cross-attention always go to XLA, where flash
        gains nothing.
    Raises:
      ValueError: an unknown implementation.
    """
    if implementation not in get_args(AttentionChoice):
        raise ValueError(
            f"attention must be one of {get_args(AttentionChoice)}, got {implementation!r}"
        )
    kernel = _kernel(query, key, causal, implementation)
    if kernel == "splash":
        return _splash(query, key, value)
    if kernel == "cudnn" or causal:
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation=kernel
        )
    probabilities = attention_probabilities(query, key).astype(value.dtype)
    return (probabilities @ value.swapaxes(1, 2)).swapaxes(1, 2)


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
    return jax.default_backend() == "tpu" if auto else implementation == "splash"


def _kernel(query, key, causal, implementation) -> Literal["xla", "cudnn", "splash"]:
    tokens, head_dim = query.shape[1], query.shape[3]
    if tokens < MIN_FLASH_TOKENS or key.shape[1] != tokens or causal or head_dim > 256:
        return "xla"
    wanted = jax.default_backend() if implementation == "auto" else implementation
    if wanted in ("tpu", "splash") and tokens % _SPLASH_TILE == 0:
        return "splash"
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if wanted in ("gpu", "cudnn") and half and head_dim % 8 == 0:
        return "cudnn"
    return "xla"


def _splash(query, key, value):
    # Late: Pallas takes a second to import, and only a program for TPU needs it.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        FullMask,
        MultiHeadMask,
        QKVLayout,
        make_splash_mha_single_device,
    )

    _, tokens, heads, head_dim = query.shape
    # Tiles divide the tokens and fit v5e's VMEM with a program around them. The backward kernel
    # has one sum for dq for each of its blocks of keys, so these are as large as they may be.
    queries, keys, inner = (
        next(n for n in (4096, 2048, 1024, 512, 256, _SPLASH_TILE) if n <= most and tokens % n == 0)
        for most in (1024, most_keys(head_dim), 512)
    )
    # As XLA would have them: 40 channels last are padded to 128 and copied on the way.
    layout = QKVLayout.SEQ_MINOR
    kernel = make_splash_mha_single_device(
        MultiHeadMask([FullMask((tokens, tokens))] * heads),
        block_sizes=BlockSizes(
            block_q=queries,
            block_kv=queries,
            block_q_dkv=inner,
            block_kv_dkv=keys,
            block_kv_dkv_compute=inner,
            use_fused_bwd_kernel=True,
            q_layout=layout,
            k_layout=layout,
            v_layout=layout,
        ),
        residual_checkpoint_name=ATTENDED,
    )
    # Splash scales nothing and wants (heads, tokens, d).
    heads_first = [x.swapaxes(1, 2) for x in (query * head_dim**-0.5, key, value)]
    return _on_each_device(jax.vmap(kernel), heads_first).swapaxes(1, 2)


def most_keys(head_dim: int) -> int:
    """Of one block of splash attention's backward kernel."""
    return 4096 if head_dim <= 128 else 1024


def _on_each_device(kernel, heads_first):
    """A Pallas call is opaque to the partitioner: each device is told to work on its own part.

    Samples and heads lie as `fmv2.parallel` lays them; what does not divide is on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return cast(jax.Array, kernel(*heads_first))
    batch, heads = heads_first[0].shape[:2]
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    spec = PartitionSpec(
        BATCH_AXES if batch % ways == 0 else None,
        "tensor" if heads % mesh.shape["tensor"] == 0 else None,
    )
    parts = jax.shard_map(kernel, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return cast(jax.Array, parts(*heads_first))
