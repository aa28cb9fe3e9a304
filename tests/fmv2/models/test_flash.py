"""Flash attention equals the formula, there and back, for every way that its kernels go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import fmv2.models.flash as flash
from tests.parity import relative_error


def given(queries, keys, head_dim=40, dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(scale * rng.standard_normal((2, 3, head_dim, n)), dtype)
        for n in (queries, keys, keys)
    ]


def formula(query, key, value):
    logits = jnp.einsum("bhdq,bhdk->bhqk", query, key) * query.shape[2] ** -0.5
    return jnp.einsum("bhqk,bhdk->bhdq", jax.nn.softmax(logits), value)


def there_and_back(call, query, key, value):
    out, back = jax.vjp(call, query, key, value)
    return out, *back(jnp.cos(query.astype(out.dtype)))


def error(query, key, value):
    """The largest of the output's and the gradients'."""
    expected = there_and_back(formula, query, key, value)
    with pltpu.force_tpu_interpret_mode():
        actual = there_and_back(flash.flash_attention, query, key, value)
    return max(relative_error(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("queries", "keys", "stretch"),
    [
        (1024, 1024, 4096),
        (128, 77, 4096),  # one block of either, filled up
        (640, 300, 4096),  # five blocks of queries; keys filled up to three blocks
        (512, 1024, 512),  # a loop of two stretches
        (256, 1000, 512),  # the last of them filled up
    ],
)
def test_equals_the_formula(monkeypatch, queries, keys, stretch):
    monkeypatch.setattr(flash, "_STRETCH", stretch)
    assert error(*given(queries, keys)) <= 1e-5


def test_a_head_too_large_to_fetch_another_beside_it(monkeypatch):
    monkeypatch.setattr(flash, "_USUAL_VMEM", 0)
    assert error(*given(384, 640)) <= 1e-5


@pytest.mark.parametrize("head_dim", [8, 64, 80])
def test_in_half_precision_it_errs_as_the_formula_does(head_dim):
    exact = there_and_back(formula, *given(256, 256, head_dim))
    half = given(256, 256, head_dim, jnp.bfloat16)
    plain = there_and_back(formula, *half)
    with pltpu.force_tpu_interpret_mode():
        actual = there_and_back(flash.flash_attention, *half)
    for ours, theirs, true in zip(actual, plain, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert relative_error(ours, true) <= max(0.01, 2 * relative_error(theirs, true))


def test_logits_beyond_the_exponents_range_give_the_nearest_value():
    assert error(*given(128, 200, scale=40.0)) <= 1e-3  # which no infinite value passes
