"""The embedded default's base: its parts fit each other, its tokenizer, and 25 MB."""

import dataclasses
import math
from importlib import import_module

import jax
import jax.numpy as jnp
import pytest
import tyro
from flax import nnx

from convert.components import COMPONENTS
from fmv2.models.abstract import abstract
from fmv2.tokens import EMBEDDED, Tokens
from train.config import TrainConfig
from train.heads import HEADS, net_class
from train.presets.tiny import tiny
from train.presets.tiny_base import PARTS

SIZES = {
    "vae": 1_563_659,
    "text_encoder": 966_144,
    "image_encoder": 644_736,
    "face_encoder": 1_120_168,
    "coefficient_encoder": 369_148,
    "unet": 7_028_368,
}
"""Parameters of each net, the norms' statistics apart."""


def preset(name):
    return getattr(import_module(f"train.presets.{name}"), name)()


@pytest.fixture(scope="module")
def configs():
    """Of all nets, as each part adds its own to those before; heads apart."""
    found = {}
    for name in PARTS:
        objective = preset(name).objective
        assert set(objective.frozen) <= found.keys(), name  # an earlier part has made it
        shapes = {**objective.fresh(found), **found}
        assert set(objective.trained) <= shapes.keys(), name
        found = {net: config for net, config in shapes.items() if net not in HEADS}
    return found


def count(net, *of):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(net, *of)))


def test_all_of_it_is_within_25_mb(configs):
    nets = {name: abstract(net_class(name), config) for name, config in configs.items()}
    assert {name: count(net, nnx.Param) for name, net in nets.items()} == SIZES
    weights = 2 * sum(count(net) for net in nets.values())
    tokenizer = sum(path.stat().st_size for path in EMBEDDED.iterdir())
    assert weights + tokenizer < 24.5e6  # half a megabyte for headers, configs and the card


def test_parts_make_all_that_the_adapter_stage_needs(configs):
    objective = tiny().objective
    assert set(objective.frozen) <= configs.keys()
    assert set(objective.fresh(configs)) == set(objective.trained)
    assert configs.keys() <= COMPONENTS.keys()


def test_text_encoder_has_the_words_of_the_tokenizer(configs):
    tokens, text = Tokens.load(EMBEDDED), configs["text_encoder"]
    assert text.vocab_size == tokens.size
    assert text.eos_token_id == tokens.ids("")[-1]
    assert configs["unet"].cross_attention_dim == text.hidden_size


def test_unet_attends_at_16_8_and_4(configs):
    """At 8 the map term looks."""
    unet = abstract(net_class("unet"), configs["unet"])
    side = preset("tiny_unet").size // configs["vae"].downscale
    assert side == configs["unet"].sample_size == 16
    channels = configs["unet"].in_channels
    assert channels == configs["unet"].out_channels == configs["vae"].latent_channels
    args = (jnp.zeros((1, side, side, channels)), jnp.zeros(1), jnp.zeros((1, 77, 128)))
    found = jax.eval_shape(lambda net, *args: net(*args, attention_at=(16, 8, 4)), unet, *args)
    queries = [maps.shape[2] for maps in found.attention.values()]
    assert sorted(set(queries)) == [4**2, 8**2, 16**2]
    assert tiny().objective.grids(128) == (8,)


@pytest.mark.parametrize("name", PARTS)
def test_headers_say_what_a_preset_is_for(name):
    doc = import_module(f"train.presets.{name}").__doc__
    for part in (f"fmv2 train {name} --data", "Hardware:", "Time and result:"):
        assert part in " ".join(doc.split()), part


@pytest.mark.parametrize("name", PARTS)
def test_presets_go_through_the_command_line(name):
    args = ["--data", "records", "--out", "run", "--steps", "7", "--checkpoint-every", "3"]
    asked = tyro.cli(TrainConfig, default=preset(name), args=args)
    fields = {"data": "records", "out": "run", "steps": 7, "checkpoint_every": 3}
    assert asked == dataclasses.replace(preset(name), **fields)


@pytest.mark.parametrize("name", PARTS)
def test_norms_that_learn_keep_no_running_mean(name, configs):
    """Their statistics would not belong to the mean of the weights."""
    config = preset(name)
    shapes = config.objective.fresh(configs)
    nets = [abstract(net_class(n), shapes[n]) for n in config.objective.trained]
    has_statistics = any(jax.tree.leaves(nnx.state(net, nnx.BatchStat)) for net in nets)
    assert (config.optimizer.ema_decay is None) == has_statistics
    assert config.drops.id == config.drops.both == config.drops.face == 0
    assert dataclasses.replace(config, data="x", out="y").size == 128
