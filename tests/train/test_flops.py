"""The count of what a step needs: by hand on small programs, and against what XLA compiles."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fmv2.parallel import MeshConfig, make_mesh
from tests.train.small import IMAGE_SIZE, small_configs
from train.abstract import program
from train.compiled import cost
from train.config import TrainConfig
from train.flops import Flops, count, step_flops
from train.nets import Shapes
from train.objectives.face_makeup import FaceMakeUp
from train.optimizer import OptimizerConfig

X = jax.ShapeDtypeStruct((5, 3), jnp.float32)
W = jax.ShapeDtypeStruct((3, 3), jnp.float32)
PRODUCT = 2 * 5 * 3 * 3


def test_a_trained_weight_costs_its_gradient_and_what_leads_to_it():
    def through_frozen(w, frozen, x):
        return jnp.sum(jnp.tanh(x @ w) @ frozen)

    # The first product needs w's gradient alone, the second only passes one on.
    assert count(through_frozen, W, W, X) == Flops(2 * PRODUCT, PRODUCT, PRODUCT)

    def before_trained(w, frozen, x):
        return jnp.sum(jnp.tanh(x @ frozen) @ w)

    assert count(before_trained, W, W, X) == Flops(2 * PRODUCT, 0, PRODUCT)

    def products_of_activations(w, x):
        y = x @ w
        return jnp.sum(y @ y.T)

    square = 2 * 5 * 5 * 3
    expected = Flops(PRODUCT + square, 2 * square, PRODUCT)
    assert count(products_of_activations, W, X) == expected


def test_loops_count_as_often_as_they_run_and_what_they_carry_learns():
    def looped(w, x):
        return jnp.sum(jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, length=4)[0])

    assert count(looped, W, X) == Flops(4 * PRODUCT, 4 * PRODUCT, 4 * PRODUCT)

    def again(w, x):
        return jnp.sum(jax.checkpoint(lambda y: y @ w)(jnp.tanh(x @ w)))

    assert count(again, W, X) == Flops(2 * PRODUCT, PRODUCT, 2 * PRODUCT)


def test_products_in_a_loop_of_unknown_length_are_refused():
    def unknown(w, x):
        return jnp.sum(jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ w, x))

    with pytest.raises(NotImplementedError, match="products inside while"):
        count(unknown, W, X)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_counts_what_xla_counts(stride):
    net = nnx.Conv(4, 6, (3, 3), strides=stride, padding=1, use_bias=False, rngs=nnx.Rngs(0))
    graph, params = nnx.split(net)
    image = jax.ShapeDtypeStruct((2, 7, 7, 4), jnp.float32)

    def forward(params, image):
        return nnx.merge(graph, params)(image)

    compiled = jax.jit(forward).lower(params, image).compile()
    assert count(lambda *args: forward(*args).sum(), params, image).forward == pytest.approx(
        compiled.cost_analysis()["flops"]
    )


def config(**fields):
    return TrainConfig(
        data=None,
        out=None,
        base=None,
        steps=1,
        objective=FaceMakeUp(id_every=2, id_bound=500, rank=32, identity="face_encoder"),
        optimizer=OptimizerConfig(ema_decay=None),
        batch_size=8,
        size=IMAGE_SIZE,
        compute="float32",
        **fields,
    )


SHAPES = Shapes(small_configs(width=256), Shapes.sd15().schedule)


def lowered(objective):
    """The real step on one device."""
    run = dataclasses.replace(config(), objective=objective)
    step, *arguments = program(run, SHAPES, make_mesh(MeshConfig(), jax.devices()[:1]))
    return step.lower(*arguments)


def test_the_compiled_step_computes_no_more_than_it_needs():
    compiled = lowered(config().objective).compile()
    needed = step_flops(config(), SHAPES)
    assert cost(compiled, None).flops == pytest.approx(needed.total, rel=0.03)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _UNetToo(FaceMakeUp):
    """The same objective, that would compute the gradient of every weight of the U-Net."""

    trained = ("adapter", "shadingnet", "unet")

    @property
    def frozen(self):
        return tuple(name for name in super().frozen if name != "unet")

    def loss(self, trained, frozen, *rest):
        return super().loss(trained, {**frozen, "unet": trained["unet"]}, *rest)


def test_the_gradient_of_a_frozen_weight_would_show():
    """Counted before it is compiled, which removes no product."""
    too_much = lowered(_UNetToo(**dataclasses.asdict(config().objective)))
    needed = step_flops(config(), SHAPES).total
    assert too_much.cost_analysis()["flops"] > 1.1 * needed
    assert lowered(config().objective).cost_analysis()["flops"] < 1.03 * needed


def test_micro_batches_and_kernels_change_next_to_nothing():
    whole = step_flops(config(), SHAPES)
    parts = dataclasses.replace(
        config(), optimizer=OptimizerConfig(accumulation=2), remat=True, attention="pallas"
    )
    # A LoRA that is merged into its weight is merged for each micro-batch.
    assert step_flops(parts, SHAPES) == pytest.approx(whole, rel=0.01)
