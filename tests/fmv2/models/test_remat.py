"""Blocks computed again on the way back give the same gradients from less memory."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from fmv2.models.flash import BACKWARD, FORWARD
from fmv2.models.layers import GroupNorm, normed_silu
from fmv2.models.shadingnet import ShadingNet
from fmv2.models.transformer import Given
from fmv2.models.unet import UNet, UNetConfig

SMALL = dataclasses.replace(
    UNetConfig.tiny(),
    block_out_channels=(32, 32),
    cross_attention=(True, False),
    num_heads=(2, 2),
    layers_per_block=1,
)


def gradient_and_kept(remat):
    unet = UNet(SMALL, remat=remat, rngs=nnx.Rngs(0))
    control = ShadingNet.from_unet(unet, remat=remat, rngs=nnx.Rngs(1))
    for zero in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        zero.kernel[...] += 0.1  # else nothing reaches the control net's inside
    graph, weights = nnx.split((unet, control))
    keys = jax.random.split(jax.random.key(0), 4)
    latents = jax.random.normal(keys[0], (2, 16, 16, 4))
    context = jax.random.normal(keys[1], (2, 7, 32))
    tokens = jax.random.normal(keys[2], (2, 4, 32))
    shading = jax.random.uniform(keys[3], (2, 128, 128, 3))
    timesteps = jnp.array([1, 500])

    def loss(weights):
        unet, control = nnx.merge(graph, weights)
        residuals = control(latents, timesteps, tokens, shading)
        out = unet(latents, timesteps, context, residuals=residuals, attention_at=(16,))
        return jnp.sum(out.noise**2) + sum(jnp.sum(m**2) for m in out.attention.values())

    kept = jax.eval_shape(lambda w: jax.vjp(loss, w)[1], weights)
    return jax.jit(jax.grad(loss))(weights), size(kept) - size(weights)


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_gradients_are_the_same_and_less_is_kept():
    (plain, plain_size), (again, again_size) = gradient_and_kept(False), gradient_and_kept(True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())
    assert again_size < plain_size / 3


def test_flash_attention_is_not_computed_again():
    unet = UNet(SMALL, attention="pallas", remat=True, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(unet)
    latents, context = jnp.zeros((1, 32, 32, 4)), jnp.zeros((1, 7, 32))

    def loss(weights):
        return jnp.sum(nnx.merge(graph, weights)(latents, jnp.array([1]), context).noise)

    program = jax.make_jaxpr(jax.value_and_grad(loss))(weights).jaxpr
    used, _ = dce_jaxpr(program, [True] * len(program.outvars))  # as XLA does
    transformers = 3  # of 32 × 32 tokens: one on the way down, two on the way up
    assert Counter(kernels(used)) == {
        FORWARD: transformers,
        BACKWARD: transformers,
    }


def test_a_group_norms_statistics_are_not_computed_again():
    norm = GroupNorm(2, 8, epsilon=1e-5, dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(norm)
    x = jnp.zeros((1, 4, 4, 8))

    def block(weights, x):
        return normed_silu(nnx.merge(graph, weights), x)

    def sums(call):
        """Over whole maps, there and back."""
        loss = jax.value_and_grad(lambda *given: jnp.sum(jnp.square(call(*given))), argnums=1)
        program = jax.make_jaxpr(loss)(weights, x).jaxpr
        used, _ = dce_jaxpr(program, [True] * len(program.outvars))
        maps = [eqn.invars[0].aval.shape for eqn in equations(used, "reduce_sum")]
        return maps.count(x.shape)

    given = Given(x, remat=True)
    assert sums(given.kept(block)) == sums(block)
    assert sums(jax.checkpoint(block)) == sums(block) + 2


def kernels(jaxpr):
    """The names of all Pallas calls, however deep."""
    return [eqn.params["name"] for eqn in equations(jaxpr, "pallas_call")]


def equations(jaxpr, name):
    """Those of one primitive, however deep."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            yield eqn
            continue
        for inner in jax.tree.leaves(list(eqn.params.values())):
            if isinstance(inner, Jaxpr | ClosedJaxpr):
                inside = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
                yield from equations(inside, name)
