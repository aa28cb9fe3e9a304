"""What a step must compute, counted from the loss alone: the measure of how well a chip is used.

Each product of the loss (matrix product or convolution) costs as much again for every operand whose
gradient is needed, and the gradient of what does not lead to a trained weight is not needed. So the
count knows nothing of how the gradient is computed, of what is computed twice, and of element-wise
work. Multiplications with padding are not counted either.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from train.abstract import abstract_batch
from train.config import TrainConfig
from train.nets import Shapes, describe
from train.step import split


class Flops(NamedTuple):
    """Of one step over all devices; a multiplication and an addition are two."""

    forward: float = 0.0
    activations: float = 0.0
    """Gradients that are passed on, through frozen nets too."""
    weights: float = 0.0
    """Gradients of what is trained."""

    @property
    def total(self) -> float:
        return sum(self)

    def times(self, n: float) -> "Flops":
        return Flops(*(n * x for x in self))


def step_flops(config: TrainConfig, shapes: Shapes) -> Flops:
    """Of one step of a run.

    Args:
      config: of the run.
      shapes: of its base, or of the nets that it begins with.
    Raises:
      UserError: the model lacks nets that the objective needs.
    """
    shapes = shapes.completed(config.objective)
    parts = config.optimizer.accumulation
    # Kernels and recomputation change how the same products are computed.
    micro = dataclasses.replace(
        config,
        batch_size=config.batch_size // parts,
        optimizer=dataclasses.replace(config.optimizer, accumulation=1),
        attention="xla",
        remat=False,
    )
    trained, frozen = describe(micro, shapes)
    graph, params, rest = split(trained)

    def loss(params, rest, frozen, batch, key):
        nets = nnx.merge(graph, params, rest)
        return config.objective.loss(nets, frozen, batch, key, shapes.schedule)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    return count(loss, params, rest, frozen, abstract_batch(micro, shapes), key).times(parts)


def count(function: Callable[..., jax.Array], params: Any, *others: Any) -> Flops:
    """Of a function's value and its gradient in its first argument, all given as shapes."""
    closed = jax.make_jaxpr(function)(params, *others)
    trained = len(jax.tree.leaves(params))
    rest = len(closed.jaxpr.invars) - trained
    return _walk(closed.jaxpr, [_TRAINED] * trained + [_DATA] * rest)[0]


class _Kind(NamedTuple):
    """What a value comes from."""

    learns: bool
    """From a trained weight: its gradient is needed."""
    weight: bool
    """From nothing but trained weights and constants."""


_TRAINED, _DATA, _CONSTANT = _Kind(True, True), _Kind(False, False), _Kind(False, True)

_Counter = tuple[Flops, list[_Kind]]


def _walk(jaxpr: Any, inputs: Sequence[_Kind]) -> _Counter:
    """The FLOPs of a program, and the kinds of what it gives."""
    kinds = dict(zip(jaxpr.invars, inputs, strict=True))
    kinds |= dict.fromkeys(jaxpr.constvars, _CONSTANT)
    total = Flops()
    for eqn in jaxpr.eqns:
        # Literals cannot be looked up, and are constants.
        given = [_CONSTANT if hasattr(x, "val") else kinds[x] for x in eqn.invars]
        found, gives = _equation(eqn, given)
        total = Flops(*map(sum, zip(total, found, strict=True)))
        kinds |= zip(eqn.outvars, gives, strict=True)
    return total, [_CONSTANT if hasattr(x, "val") else kinds[x] for x in jaxpr.outvars]


def _equation(eqn: Any, given: list[_Kind]) -> _Counter:
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, given)
    inner = list(_programs(eqn))
    if len(inner) == 1 and len(inner[0].invars) == len(given):
        return _walk(inner[0], given)
    if any(_products(program) for program in inner):
        raise NotImplementedError(f"products inside {name} cannot be counted")
    kind = _Kind(any(k.learns for k in given), all(k.weight for k in given))
    gives = [
        kind if jnp.issubdtype(x.aval.dtype, jnp.floating) else kind._replace(learns=False)
        for x in eqn.outvars
    ]
    cost = _product(eqn)
    backward = [kind for kind in given if kind.learns] if cost else []
    weights = sum(kind.weight for kind in backward)
    return Flops(cost, cost * (len(backward) - weights), cost * weights), gives


def _scan(eqn: Any, given: list[_Kind]) -> _Counter:
    """As often as it runs; what it carries is what any turn makes of it."""
    program, consts = eqn.params["jaxpr"].jaxpr, eqn.params["num_consts"]
    carry = eqn.params["num_carry"]
    while True:
        found, gives = _walk(program, given)
        after = [
            _Kind(a.learns or b.learns, a.weight and b.weight)
            for a, b in zip(given[consts : consts + carry], gives[:carry], strict=True)
        ]
        if after == given[consts : consts + carry]:
            return found.times(eqn.params["length"]), gives
        given = [*given[:consts], *after, *given[consts + carry :]]


def _programs(eqn: Any) -> Iterator[Any]:
    """Those that an equation calls."""
    for value in eqn.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if hasattr(x, "eqns"):
                yield getattr(x, "jaxpr", x)


def _products(jaxpr: Any) -> bool:
    return any(_product(e) or any(map(_products, _programs(e))) for e in jaxpr.eqns)


def _product(eqn: Any) -> float:
    """FLOPs of a matrix product or a convolution, 0 of anything else."""
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        return _convolution(eqn)
    return 0.0


def _convolution(eqn: Any) -> float:
    """Two for every weight that meets a pixel of the map itself."""
    image, kernel = (x.aval.shape for x in eqn.invars)
    out, params = eqn.outvars[0].aval.shape, eqn.params
    numbers = params["dimension_numbers"]
    met = 1
    for d, (i, k, o) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        if params["lhs_dilation"][d] != 1 or params["rhs_dilation"][d] != 1:
            raise NotImplementedError("dilated convolutions cannot be counted")
        stride, before = params["window_strides"][d], params["padding"][d][0]
        met *= sum(
            0 <= position * stride + tap - before < image[i]
            for position in range(out[o])
            for tap in range(kernel[k])
        )
    batch, channels = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2.0 * batch * channels * kernel[numbers.rhs_spec[1]] * met
