"""The scorer's preset: what it asks of records, its size, and that it stays apart from the base."""

import dataclasses
import inspect
import math

import jax
import tyro
from flax import nnx

from convert.components import COMPONENTS
from data.procedural.factors import CLASSES, EMOTIONS
from fmv2.metrics.scorer import Scorer
from fmv2.models.abstract import abstract
from fmv2.parallel import MeshConfig, make_mesh
from train.abstract import program
from train.config import TrainConfig
from train.nets import Shapes
from train.presets import tiny_scorer as module
from train.presets.tiny_base import PARTS
from train.presets.tiny_scorer import tiny_scorer


def test_its_folder_is_small():
    config = tiny_scorer().objective.fresh({})["scorer"]
    leaves = jax.tree.leaves(nnx.state(abstract(Scorer, config)))
    size = sum((2 if len(x.shape) > 1 else 4) * math.prod(x.shape) for x in leaves)
    assert size < 1.2e6


def test_it_tells_every_class_of_the_world():
    config = tiny_scorer().objective.fresh({})["scorer"]
    assert config.classes == {**CLASSES, "emotion": EMOTIONS}


def test_it_is_no_part_of_the_base():
    """Nor of its seed: nothing in it is as it is in a net of the base."""
    config = tiny_scorer()
    assert "tiny_scorer" not in PARTS
    assert not set(config.objective.trained) & COMPONENTS.keys()
    assert config.seed != TrainConfig(objective=config.objective, steps=1, batch_size=1).seed


def test_the_step_can_be_planned():
    """Its abstract batch has all that the loss reads."""
    config = dataclasses.replace(tiny_scorer(), batch_size=2)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    planned = program(config, Shapes.of(None), mesh)
    state, metrics = jax.eval_shape(planned.step, *planned[1:])
    assert metrics["accuracy"].shape == ()
    assert jax.tree.structure(state) == jax.tree.structure(planned.state)


def test_it_goes_through_the_command_line_and_says_what_it_is_for():
    asked = tyro.cli(TrainConfig, default=tiny_scorer(), args=["--steps", "7"])
    assert asked == dataclasses.replace(tiny_scorer(), steps=7)
    doc = " ".join(inspect.getdoc(module).split())
    for part in ("fmv2 train tiny_scorer --data", "Hardware:", "Time and result:"):
        assert part in doc
