"""The embedded default that is shipped: whole, small, finite, and of one tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.components import COMPONENTS
from convert.folder import assemble, read
from convert.kinds import EMBEDDED
from fmv2.assets import SCORER, TINY
from fmv2.metrics.scorer import load_scorer
from fmv2.tokens import Tokens

LATER = {"adapter", "shadingnet"}
"""What the quickstart trains."""


def finite(net):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(nnx.state(net)))


def test_the_model_is_whole_and_of_its_size():
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) <= 25e6
    model = read(assemble([TINY]), dtype=jnp.float32)
    nets = model.nets()
    assert nets.keys() == COMPONENTS.keys() - LATER
    assert model.head is not None
    assert [name for name, net in nets.items() if not finite(net)] == []


def test_it_was_trained_with_the_schedule_and_the_words_of_a_model_from_nothing():
    model = read(assemble([TINY]))
    assert model.scheduler == EMBEDDED.scheduler
    assert Tokens.load(TINY / "tokenizer").size == model.text_encoder.config.vocab_size


def test_the_scorer_is_there():
    assert finite(load_scorer(SCORER))
