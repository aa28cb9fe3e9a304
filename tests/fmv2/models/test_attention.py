"""Every kernel that runs here gives softmax(q kᵀ / sqrt(d)) v; the choice falls as documented."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from fmv2.models.attention import _kernel, attention, attention_probabilities
from fmv2.parallel import MeshConfig, make_mesh, under
from tests.parity import relative_error


def heads(rng, tokens, dim=40, batch=1, count=2):
    return jnp.asarray(rng.standard_normal((batch, tokens, count, dim), np.float32))


@pytest.mark.parametrize(
    ("queries", "keys", "causal"), [(9, 9, False), (9, 9, True), (9, 5, False)]
)
def test_attention_equals_torch(queries, keys, causal):
    rng = np.random.default_rng(0)
    q, k, v = heads(rng, queries), heads(rng, keys), heads(rng, keys)
    torch_q, torch_k, torch_v = (torch.tensor(np.array(x)).transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(
        torch_q, torch_k, torch_v, is_causal=causal
    ).transpose(1, 2)
    assert relative_error(attention(q, k, v, causal=causal), expected) <= 1e-5


def test_probabilities_are_those_that_attention_uses():
    rng = np.random.default_rng(0)
    q, k, v = heads(rng, 9), heads(rng, 5), heads(rng, 5)
    probabilities = attention_probabilities(q, k)
    assert probabilities.shape == (1, 2, 9, 5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    expected = jnp.einsum("bhqk,bkhd->bqhd", probabilities, v)
    assert relative_error(attention(q, k, v), expected) <= 1e-5


def test_pallas_works_on_each_devices_own_samples_and_heads():
    rng = np.random.default_rng(0)
    mesh = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    placed = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    q, k, v = (jax.device_put(heads(rng, 1024, batch=2), placed) for _ in range(3))
    expected = attention(q, k, v, implementation="xla")
    with pltpu.force_tpu_interpret_mode():
        ours = under(mesh, partial(attention, implementation="pallas"))
        compiled = jax.jit(ours).lower(q, k, v).compile()
        actual = compiled(q, k, v)
    assert relative_error(actual, expected) <= 1e-5
    assert actual.sharding.spec == placed.spec
    assert not re.search("all-(gather|reduce|to-all)", compiled.as_text())


@pytest.mark.parametrize(
    ("backend", "tokens", "dim", "dtype", "choice", "kernel"),
    [
        ("tpu", 4096, 40, "bfloat16", "auto", "pallas"),
        ("tpu", 1024, 80, "float32", "auto", "pallas"),
        ("tpu", 1100, 80, "bfloat16", "auto", "xla"),  # not a multiple of the tile
        ("tpu", 256, 160, "bfloat16", "auto", "xla"),  # short
        ("tpu", 4096, 512, "bfloat16", "auto", "xla"),  # the VAE's one wide head
        ("gpu", 4096, 40, "bfloat16", "auto", "cudnn"),
        ("gpu", 4096, 40, "float32", "auto", "xla"),  # cuDNN's flash is half precision only
        ("gpu", 4096, 36, "bfloat16", "auto", "xla"),
        ("cpu", 4096, 40, "bfloat16", "auto", "xla"),
        ("cpu", 4096, 40, "bfloat16", "pallas", "pallas"),  # compiled ahead of time for a TPU
        ("tpu", 4096, 40, "bfloat16", "xla", "xla"),
    ],
)
def test_the_kernel_is_chosen_by_backend_and_length(
    monkeypatch, backend, tokens, dim, dtype, choice, kernel
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = jax.ShapeDtypeStruct((1, tokens, 8, dim), jnp.dtype(dtype))
    assert _kernel(x, x, False, choice) == kernel


@pytest.mark.parametrize(
    ("backend", "keys", "causal", "kernel"),
    [
        ("tpu", 77, False, "pallas"),
        ("tpu", 4, False, "xla"),  # an identity's
        ("tpu", 4096, True, "xla"),
        ("gpu", 77, False, "xla"),
    ],
)
def test_the_kernel_is_chosen_by_keys(monkeypatch, backend, keys, causal, kernel):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    query, key = (jax.ShapeDtypeStruct((1, n, 8, 40), jnp.bfloat16) for n in (4096, keys))
    assert _kernel(query, key, causal, "auto") == kernel


def test_an_unknown_implementation_is_refused():
    x = jnp.zeros((1, 2, 1, 8))
    with pytest.raises(ValueError, match=r"'auto', 'xla', 'cudnn', 'pallas'.*got 'flash'"):
        attention(x, x, x, implementation="flash")  # pyright: ignore
