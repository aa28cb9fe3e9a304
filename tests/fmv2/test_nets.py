"""Programs over nets: models of one structure share them, each with its own weights."""

import jax
import numpy as np
from flax import nnx

from fmv2.nets import Nets

traced = []


def times(nets, x, *, by):
    traced.append(by)
    return by * nets["linear"](x)


def linear(features, seed):
    return Nets({"linear": nnx.Linear(2, features, rngs=nnx.Rngs(seed))})


def test_models_of_one_structure_share_a_program():
    traced.clear()
    x, models = np.ones((1, 2), np.float32), [linear(3, 0), linear(3, 1), linear(4, 0)]
    for model in models:
        found = model.jit(times, "linear", "not there", by=2)(x)
        np.testing.assert_allclose(found, 2 * model["linear"](x), rtol=1e-6)
    assert traced == [2, 2]  # of the first two, and of the third
    models[0].jit(times, "linear", by=3)(x)
    assert traced == [2, 2, 3]


def test_precision_is_that_of_a_models_own_programs():
    traced.clear()

    def seen(nets, x):
        traced.append(jax.config.jax_default_matmul_precision)
        return nets["linear"](x)

    x, net = np.ones((1, 2), np.float32), nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    for precision in (None, "highest"):
        Nets({"linear": net}, precision).jit(seen, "linear")(x)
    assert traced == [None, "highest"]
