"""Attention on a TPU whose tokens lie last, forward and backward (Pallas).

Splash attention, JAX's own, multiplies a block of probabilities as rows with the values as columns:
40 channels of a head then fill 40 of a matrix unit's 128 columns, and stand padded to 128 in every
array that goes in or out. Here all is transposed. Logits are (keys, queries), so that the softmax
goes down sublanes and its statistics are rows; and where a product has a head's channels, they are
the rows that pass through a unit that holds a square of probabilities: 40 rows, not 128.

Source: Dao et al. 2022 (FlashAttention), algorithms 1 and 4.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from fmv2.models.layers import ATTENDED, LANES

FORWARD, BACKWARD = "flash_forward", "flash_backward"
"""The kernels' names in a compiled program."""

# Of one step: four squares of a matrix unit side by side, and as many keys as registers can follow.
_QUERIES, _KEYS = 512, 256
_USUAL_VMEM = 2**24
# With fewer keys the forward kernel costs less than its output does, kept and read again.
_WORTH_KEEPING = 512
# Of one stretch of the program; what is longer is a loop.
_STRETCH = 4096


def flash_attention(
    query: Float[Array, "b heads d q"],
    key: Float[Array, "b heads d k"],
    value: Float[Array, "b heads d k"],
) -> Float[Array, "b heads d q"]:
    """softmax(q kᵀ / sqrt(d)) v of each head. Queries are a multiple of LANES, keys any number."""
    keys = key.shape[3]
    padding = [(0, 0)] * 3 + [(0, -keys % LANES)]
    return _attention(keys, query, *(jnp.pad(x, padding) for x in (key, value)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(keys, query, key, value):
    """Over the first `keys` of padded ones."""
    return _forward(keys, query, key, value)[0]


@partial(jax.jit, static_argnums=0)  # dropped where nothing of it is used; a bare kernel never is
def _forward(keys, query, key, value):
    grid, part, whole, row = _blocks(query, key)
    return pl.pallas_call(
        partial(_forward_kernel, keys),
        grid=grid,
        in_specs=[part, whole, whole],
        out_specs=[part, row],
        out_shape=[query, jax.ShapeDtypeStruct((*query.shape[:2], 1, query.shape[3]), jnp.float32)],
        compiler_params=_parameters(key),
        name=FORWARD,
    )(query, key, value)


def _forward_and_kept(keys, query, key, value):
    out, log_sums = _forward(keys, query, key, value)
    if keys >= _WORTH_KEEPING:
        out, log_sums = (checkpoint_name(x, ATTENDED) for x in (out, log_sums))
    return out, (query, key, value, out, log_sums)


def _backward(keys, kept, gradient):
    query, key, value, out, log_sums = kept
    grid, part, whole, row = _blocks(query, key)
    return pl.pallas_call(
        partial(_backward_kernel, keys),
        grid=grid,
        in_specs=[part, whole, whole, part, row, part],
        out_specs=[part, whole, whole],
        out_shape=[query, key, value],
        scratch_shapes=[pltpu.VMEM(key.shape[2:], jnp.float32)] * 2,
        compiler_params=_parameters(key),
        name=BACKWARD,
    )(query, key, value, out, log_sums, gradient)


_attention.defvjp(_forward_and_kept, _backward)


def _parameters(key):
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"),
        vmem_limit_bytes=_needed(key, 1) if _is_large(key) else None,
    )


def _is_large(key):
    """Whether the next head's keys cannot be fetched while this one is worked on."""
    return _needed(key, 2) > _USUAL_VMEM


def _needed(key, heads):
    """Bytes for the keys, the values and their gradients of so many heads at a time, for the sums
    of the gradients, and for what spills."""
    return (8 * heads + 8) * math.prod(key.shape[2:]) + 2**22


def _blocks(query, key):
    """The grid, and of one head for one step: a block of its queries; all of its keys; a row over
    the block's queries."""
    batch, heads, head_dim, tokens = query.shape
    queries = math.gcd(tokens, _QUERIES)
    part = pl.BlockSpec((None, None, head_dim, queries), lambda b, h, i: (b, h, 0, i))
    whole = pl.BlockSpec(
        (None, None, *key.shape[2:]),
        lambda b, h, i: (b, h, 0, 0),
        pipeline_mode=pl.Buffered(1) if _is_large(key) else None,
    )
    row = pl.BlockSpec((None, None, 1, queries), lambda b, h, i: (b, h, 0, i))
    return (batch, heads, tokens // queries), part, whole, row


def _forward_kernel(keys, query_ref, key_ref, value_ref, out_ref, log_sum_ref):
    head_dim, queries = query_ref.shape
    query = _scaled(query_ref)

    def logits(first, at):
        return _masked(_product(key_ref[:, at], query, contract=(0, 0)), first, keys, key_ref)

    def stretch(blocks, carry):
        top, total, out = carry
        ahead = logits(*blocks[0])
        for n, (_, at) in enumerate(blocks):
            here = ahead
            # The next logits are asked for before these are used: the matrix units and the vector
            # units then have work at the same time.
            if n + 1 < len(blocks):
                ahead = logits(*blocks[n + 1])
            new = jnp.maximum(top, here.max(axis=0, keepdims=True))
            shrink, probabilities = jnp.exp2(top - new), jnp.exp2(here - new)
            total = shrink * total + probabilities.sum(axis=0, keepdims=True)
            probabilities = probabilities.astype(query.dtype)
            out = shrink * out + _product(value_ref[:, at], probabilities, contract=(1, 0))
            top = new
        return top, total, out

    row = jnp.zeros((1, queries), jnp.float32)
    start = (row - jnp.inf, row, jnp.zeros((head_dim, queries), jnp.float32))
    top, total, out = _over_keys(stretch, key_ref.shape[1], start)
    out_ref[...] = (out / total).astype(out_ref.dtype)
    log_sum_ref[...] = top + jnp.log2(total)


def _backward_kernel(
    keys,
    query_ref,
    key_ref,
    value_ref,
    out_ref,
    log_sum_ref,
    gradient_ref,
    query_grad_ref,
    key_grad_ref,
    value_grad_ref,
    key_sum_ref,
    value_sum_ref,
):
    block, blocks = pl.program_id(2), pl.num_programs(2)

    @pl.when(block == 0)
    def _():
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    query, gradient, log_sum = _scaled(query_ref), gradient_ref[...], log_sum_ref[...]
    products = out_ref[...].astype(jnp.float32) * gradient.astype(jnp.float32)
    common = products.sum(axis=0, keepdims=True)

    def stretch(blocks, query_grad):
        for first, at in blocks:
            key = key_ref[:, at]
            logits = _masked(_product(key, query, contract=(0, 0)), first, keys, key_ref)
            probabilities = jnp.exp2(logits - log_sum)
            slope = _product(value_ref[:, at], gradient, contract=(0, 0)) - common
            slope = (probabilities * slope).astype(query.dtype)
            probabilities = probabilities.astype(query.dtype)
            value_sum_ref[:, at] += _product(gradient, probabilities, contract=(1, 1))
            key_sum_ref[:, at] += _product(query, slope, contract=(1, 1))
            query_grad = query_grad + _product(key, slope, contract=(1, 0))
        return query_grad

    start = jnp.zeros(query.shape, jnp.float32)
    query_grad = _over_keys(stretch, key_ref.shape[1], start)
    query_grad_ref[...] = (query_grad * len(query) ** -0.5).astype(query_grad_ref.dtype)

    @pl.when(block == blocks - 1)
    def _():
        # The queries carry log₂ e.
        key_grad_ref[...] = (key_sum_ref[...] * math.log(2)).astype(key_grad_ref.dtype)
        value_grad_ref[...] = value_sum_ref[...].astype(value_grad_ref.dtype)


def _scaled(query_ref):
    """Queries for logits to the base of 2, which is what the hardware raises to a power."""
    scale = math.log2(math.e) * query_ref.shape[0] ** -0.5
    return (query_ref[...].astype(jnp.float32) * scale).astype(query_ref.dtype)


def _masked(logits, first, keys, key_ref):
    """-inf for the keys that only fill the last block."""
    if keys == key_ref.shape[1]:
        return logits
    places = first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    return jnp.where(places < keys, logits, -jnp.inf)


def _product(a, b, *, contract):
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _over_keys(stretch, tokens, carry):
    """`stretch(blocks, carry)` from the first key to the last; of a block its first key and all."""
    size = math.gcd(tokens, _KEYS)
    length = max(n for n in range(size, min(tokens, _STRETCH) + 1, size) if tokens % n == 0)

    def one(i, carry):
        places = [pl.multiple_of(i * length, size) + n for n in range(0, length, size)]
        return stretch([(first, pl.ds(first, size)) for first in places], carry)

    return jax.lax.fori_loop(0, tokens // length, one, carry, unroll=tokens == length)
