"""A run's step and what it works on, as shapes with shardings: all that a compiler needs."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.procedural.factors import CLASSES
from data.schema import COEFFICIENTS, MASKS, TOKENS, Batch
from fmv2.compiling import options
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.parallel import batch_sharding, shardings, under
from train.config import TrainConfig
from train.nets import Nets, Shapes, describe
from train.optimizer import make_optimizer
from train.step import Objective, TrainState, init_state, make_step, split


class Program(NamedTuple):
    """A step that can be lowered, and its abstract arguments."""

    step: Any
    """`jax.jit` of state, frozen nets and batch, its state donated."""
    state: TrainState
    frozen: Nets
    batch: Batch


def program(config: TrainConfig, shapes: Shapes, mesh: Mesh) -> Program:
    """The step of a run on a mesh, whose devices need not exist here.

    Raises:
      UserError: the model lacks nets that the objective needs.
    """
    shapes = shapes.completed(config.objective)
    trained, frozen = describe(config, shapes)
    state = jax.eval_shape(partial(initial_state, config), trained)
    state, frozen = (_placed(x, shardings(x, mesh)) for x in (state, frozen))
    one = batch_sharding(mesh)
    batch = jax.tree.map(lambda x: _struct(x, one), abstract_batch(config, shapes))
    return Program(
        jit_step(config, split(trained)[0], shapes.schedule, state, mesh), state, frozen, batch
    )


def initial_state(config: TrainConfig, trained: Nets) -> TrainState:
    """The state before the first step."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    return init_state(trained, optimizer, config.optimizer, config.seed)


def jit_step(
    config: TrainConfig, graph: Any, schedule: NoiseSchedule, state: TrainState, mesh: Mesh
) -> Callable[..., Any]:
    """The step under jit: state stays where it is, metrics go everywhere.

    Args:
      graph: of the trained nets, from `train.step.split`.
      state: with shardings; its values are not looked at.
    """
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    effort = options(sum(x.size for x in jax.tree.leaves(state.params)))
    return _jit_step(
        config.objective,
        config.optimizer,
        config.steps,
        graph,
        schedule,
        mesh,
        tuple(leaves),
        tree,
        tuple(effort.items()),
    )


@functools.lru_cache(maxsize=2)
def _jit_step(objective: Any, settings, steps, graph, schedule, mesh, leaves, tree, effort):
    """Remembered, so that two runs of one program in one process compile it once."""
    if mesh.shape["fsdp"] > 1:
        objective = _Gathered(objective, mesh)
    optimizer = make_optimizer(settings, steps)
    step = make_step(objective, graph, optimizer, settings, schedule)
    placed = jax.tree.unflatten(tree, leaves)
    return jax.jit(
        under(mesh, step),
        donate_argnums=0,
        out_shardings=(placed, None),
        compiler_options=dict(effort),
    )


class _Gathered:
    """An objective whose weights are whole, but for their tensor parts, while they are used.

    Without being told, the partitioner splits activations as it finds the weights, and exchanges
    those. Told so, it gathers each weight where it is used, and scatters its gradient.
    """

    def __init__(self, objective: Objective, mesh: Mesh):
        self._objective, self._mesh = objective, mesh

    def loss(self, trained, frozen, batch, key, schedule):
        for net in trained.values():  # in place: the step reads running statistics from it
            nnx.update(net, self._whole(nnx.state(net, nnx.Param)))
        frozen = {name: self._whole(net) for name, net in frozen.items()}
        return self._objective.loss(trained, frozen, batch, key, schedule)

    def _whole(self, tree):
        return jax.tree.map(
            jax.lax.with_sharding_constraint, tree, shardings(tree, self._mesh, but="fsdp")
        )


def abstract_batch(config: TrainConfig, shapes: Shapes) -> Batch:
    """What the loader gives, as shapes."""
    b, size, objective = config.batch_size, config.size, config.objective

    def field(dtype: Any, *sides: int) -> Any:
        return jax.ShapeDtypeStruct((b, *sides), dtype)

    face = face_size(shapes)
    optional: dict[str, Any] = {}
    if "labels" in objective.extras:
        optional["labels"] = field(jnp.uint8, size, size)
    if "latent_moments" in objective.extras:
        optional["latent_moments"] = field(jnp.float16, *shapes.configs["vae"].moments(size))
    if "coefficients" in objective.extras:
        optional["coefficients"] = {
            name: field(jnp.float32, *shape) for name, (shape, _) in COEFFICIENTS.items()
        }
    if "factors" in objective.extras:
        named = ("identity", *CLASSES, "emotion")
        optional["factors"] = {name: field(jnp.int32) for name in named}
    flag = field(jnp.bool_)
    return Batch(
        index=field(jnp.int32),
        image=field(jnp.uint8, size, size, 3),
        face=field(jnp.uint8, face, face, 3),
        shading=field(jnp.uint8, size, size, 3),
        input_ids=field(jnp.int32, TOKENS),
        caption_kind=field(jnp.int32),
        token_mask=field(jnp.bool_, MASKS, TOKENS),
        mask_valid=field(jnp.bool_, MASKS),
        masks={g: field(jnp.float32, MASKS, g, g) for g in objective.grids(size)},
        face_id=field(jnp.float32, 512),
        landmarks=field(jnp.float32, 5, 2),
        text_dropped=flag,
        face_dropped=flag,
        id_dropped=flag,
        **optional,
    )


def face_size(shapes: Shapes) -> int:
    """Side of the aligned face in pixels that the model's image encoder wants."""
    encoder = shapes.configs.get("image_encoder")
    return 224 if encoder is None else encoder.image_size


def _placed(tree: Any, placed: Any) -> Any:
    return jax.tree.map(_struct, tree, placed)


def _struct(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    spec = PartitionSpec(*sharding.spec[: len(x.shape)])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(sharding.mesh, spec))
