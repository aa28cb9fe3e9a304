"""The nets of a model on all devices of this machine, and programs over them."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fmv2.compiling import options
from fmv2.parallel import MeshConfig, batch_sharding, batch_ways, make_mesh, under


class Nets(Mapping[str, Any]):
    """Nets by component, a copy on each device; batches are split over them.

    Args:
      nets: as `convert.folder.Model.nets` gives them.
      precision: of products, by JAX's names. Of its own accord JAX rounds the factors of a float32
        product on GPU and TPU, to 10 bits and to 7.
    """

    def __init__(self, nets: Mapping[str, Any], precision: str | None = None):
        self.precision = precision
        self.mesh = make_mesh(MeshConfig(), jax.local_devices())
        self.ways = batch_ways(self.mesh)
        """Parts that a batch is split into."""
        placed = jax.device_put(dict(nets), NamedSharding(self.mesh, PartitionSpec()))
        self._nets: dict[str, Any] = placed
        # Taking a net apart is slow, so that it is done once and not at every step.
        flat = {name: jax.tree.flatten(net) for name, net in placed.items()}
        self._leaves = {name: leaves for name, (leaves, _) in flat.items()}
        weights = sum(x.size for x in jax.tree.leaves(self._leaves))
        self._options = tuple(options(weights).items())
        self._trees = {name: tree for name, (_, tree) in flat.items()}

    def __getitem__(self, name: str) -> Any:
        return self._nets[name]

    def __iter__(self):
        return iter(self._nets)

    def __len__(self) -> int:
        return len(self._nets)

    def jit(self, function: Callable[..., Any], *names: str, **fixed: Any) -> Callable[..., Any]:
        """`function(nets, …, **fixed)` compiled, as a function of what stands at the dots.

        Models of one structure share the program of one function.

        Args:
          names: of the nets that it may use; those that are not there are left out.
          fixed: by keyword; hashable.
        """
        found = tuple(name for name in names if name in self._nets)
        trees = tuple(self._trees[name] for name in found)
        leaves = tuple(self._leaves[name] for name in found)
        settings = tuple(fixed.items()), self.precision, self._options
        return partial(_program(function, self.mesh, found, trees, *settings), leaves)

    def share(self, batch: Any) -> Any:
        """A batch's arrays on the devices, a part of the pictures on each.

        Args:
          batch: a tree of arrays, of as many pictures as a multiple of `ways`.
        """
        return jax.device_put(batch, batch_sharding(self.mesh))

    def portions(self, count: int, most: int) -> list[np.ndarray]:
        """Which of `count` pictures are drawn together: portions of one size, of no more than
        `most` on each device, that divides by `ways`; the last picture fills up the last one."""
        rounds = math.ceil(count / (most * self.ways))
        size = math.ceil(count / rounds / self.ways) * self.ways
        places = np.minimum(np.arange(rounds * size), count - 1)
        return list(places.reshape(rounds, size))


@lru_cache(maxsize=64)
def _program(function, mesh, names, trees, fixed, precision, effort) -> Callable[..., Any]:
    def run(leaves, *given):
        nets = {
            name: jax.tree.unflatten(tree, own)
            for name, tree, own in zip(names, trees, leaves, strict=True)
        }
        with jax.default_matmul_precision(precision):
            return function(nets, *given, **dict(fixed))

    return jax.jit(under(mesh, run), compiler_options=dict(effort))
