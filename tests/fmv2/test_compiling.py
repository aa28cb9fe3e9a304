"""XLA's own effort: little for what is small or runs once."""

import jax
import jax.numpy as jnp
import pytest

from fmv2.compiling import options, options_for_once


def test_small_nets_on_a_gpu_are_not_tuned(monkeypatch):
    assert options(5) == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert options(5) == options_for_once() != {}
    assert options(860_000_000) == {}


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_xla_knows_every_option(backend, monkeypatch):
    with monkeypatch.context() as there:
        there.setattr(jax, "default_backend", lambda: backend)
        found = options_for_once()
    x = jnp.ones((2, 2))
    assert jax.jit(lambda x: x @ x, compiler_options=found)(x).sum() == 8
