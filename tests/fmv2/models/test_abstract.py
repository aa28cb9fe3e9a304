"""Nets without values: what is remembered of one is nobody's to change."""

import jax
import jax.numpy as jnp
from flax import nnx

from fmv2.models.abstract import abstract
from fmv2.models.id_adapter import IdAdapter, IdAdapterConfig
from fmv2.models.unet import UNetConfig

CONFIG = IdAdapterConfig.for_unet(UNetConfig.tiny())


def shapes(net: nnx.Module):
    return [(x.shape, x.dtype) for x in jax.tree.leaves(nnx.state(net, nnx.Param))]


def test_it_is_shaped_as_the_net_itself_in_the_dtype_asked_for():
    for dtype in (jnp.float32, jnp.bfloat16):
        made = IdAdapter(CONFIG, rngs=nnx.Rngs(0), param_dtype=dtype)
        assert shapes(abstract(IdAdapter, CONFIG, param_dtype=dtype)) == shapes(made)


def test_each_is_its_own():
    before = shapes(abstract(IdAdapter, CONFIG))
    changed = abstract(IdAdapter, CONFIG)
    nnx.update(changed, jax.tree.map(lambda x: jnp.zeros((1, *x.shape)), nnx.state(changed)))
    changed.image_proj.shape = (0, 0)
    again = abstract(IdAdapter, CONFIG)
    assert shapes(changed) != before
    assert shapes(again) == before
    assert again.image_proj.shape != (0, 0)
