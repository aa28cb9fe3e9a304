"""Nets without values: what loading, planning and counting need to know of a net."""

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
    rngs: Any = _OneKey()
    return nnx.eval_shape(lambda: net(config, rngs=rngs, **options))


class _OneKey:
    """Stands in for `nnx.Rngs` where weights are described and not drawn."""

    def params(self) -> jax.Array:
        return jax.random.key(0)
