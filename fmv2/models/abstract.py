"""Nets without values: what loading, planning and counting need to know of a net."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

Net = TypeVar("Net", bound=nnx.Module)


def abstract(net: Callable[..., Net], config: Any, **options: Any) -> Net:
    """A net of this config whose leaves have shape and dtype, and no values.

    `nnx.eval_shape` of a net made with `nnx.Rngs` says the same, in a time that grows with the
    square of the number of layers: under tracing, the counter of its keys does.

    Args:
      net: its class.
      config: its shape.
      options: what else the class takes: `dtype`, `param_dtype`, `attention`.
    """
    graph, state = _described(net, config, tuple(options.items()))
    made: Any = nnx.merge(graph, state, copy=True)  # what is remembered is nobody's to change
    return made


@functools.lru_cache(maxsize=64)
def _described(net: Callable[..., nnx.Module], config: Any, options: tuple[tuple[str, Any], ...]):
    """Structure and shapes, remembered: a model is described each time it is read."""
    rngs: Any = _OneKey()
    return nnx.split(nnx.eval_shape(lambda: net(config, rngs=rngs, **dict(options))))


class _OneKey:
    """Stands in for `nnx.Rngs` where weights are described and not drawn."""

    def params(self) -> jax.Array:
        return jax.random.key(0)
