"""The one engine that applies weight tables, from torch names to Flax paths and back.

It is total: every torch name matches exactly one rule or a listed ignore, every Flax leaf is filled
exactly once, shapes agree. All faults are found before a single tensor is read, and are reported in
one error.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from convert.rules import Layout, Table
from fmv2.errors import UserError

Placement = Callable[[str], jax.sharding.Sharding] | jax.sharding.Sharding | None
"""Where weights go: one sharding for all, or a function of the Flax path; None: default device."""


class ConversionError(UserError):
    """Weights that do not fit a net. `faults` lists every one."""

    def __init__(self, name: str, faults: list[str]):
        super().__init__(f"{name}: " + "; ".join(faults))
        self.faults = faults


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A tensor in a file, not read yet: its shape and dtype as stored, and how to read it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def load(
    net: nnx.Module,
    tensors: Mapping[str, TensorRef],
    table: Table,
    *,
    name: str,
    dtype: DTypeLike | None = None,
    sharding: Placement = None,
) -> nnx.Module:
    """The net with the file's weights.

    Tensors are read one at a time, straight into their dtype and sharding: beside the weights
    themselves, no more than the tensor in hand is ever in host memory.

    Args:
      net: gives structure and shapes; one of `fmv2.models.abstract` does. It is not changed.
      tensors: what the file holds, by torch name.
      table: the weight table of this kind of net.
      name: what to call the net in an error ("unet").
      dtype: of floating-point weights; None keeps each tensor's own.
      sharding: where the weights go.
    Raises:
      ConversionError: any name that is unknown, missing, doubled or ambiguous, any shape that
        differs; all of them.
    """
    graphdef, state = nnx.split(net)
    leaves = {_dotted(path): variable for path, variable in nnx.to_flat_state(state)}
    sources = _pair(leaves, tensors, table, name)
    placement = sharding if callable(sharding) else lambda _: sharding
    filled = []
    for path, variable in nnx.to_flat_state(state):
        key, layout = sources[_dotted(path)]
        array = layout.to_flax(tensors[key].read())
        if dtype is not None and jax.numpy.issubdtype(array.dtype, np.floating):
            array = array.astype(dtype)
        # A copy of its own: on CPU, device_put may otherwise alias the reader's buffer or a strided
        # view of it.
        array = jax.device_put(np.array(array, order="C"), placement(_dotted(path)))
        filled.append((path, variable.replace(array)))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def check(net: nnx.Module, tensors: Mapping[str, TensorRef], table: Table, *, name: str) -> None:
    """Raises what `load` would raise, and reads nothing."""
    leaves = {_dotted(path): variable for path, variable in nnx.to_flat_state(nnx.state(net))}
    _pair(leaves, tensors, table, name)


def dump(net: nnx.Module, table: Table) -> Iterator[tuple[str, np.ndarray]]:
    """The net's weights by torch name, in torch layout and their own dtype, one at a time.

    Raises:
      ValueError: a leaf that not exactly one rule matches: the table is wrong.
    """
    for path, variable in nnx.to_flat_state(nnx.state(net)):
        key, layout = _torch_name(_dotted(path), table)
        yield key, np.ascontiguousarray(layout.to_torch(np.asarray(variable[...])))


def torch_shapes(net: nnx.Module, table: Table) -> dict[str, tuple[int, ...]]:
    """The torch names and shapes that a file of this net must hold. The net may be abstract."""
    shapes = {}
    for path, variable in nnx.to_flat_state(nnx.state(net)):
        key, layout = _torch_name(_dotted(path), table)
        shapes[key] = _torch_shape(layout, variable.shape)
    return shapes


def _pair(leaves, tensors, table, name):
    """Which torch name fills each leaf, with the layout; or one error that names every fault."""
    candidates: dict[str, list] = {}
    faults = []
    for key in tensors:
        matches = table.to_flax(key)
        if len(matches) + table.ignored(key) > 1:
            faults.append(f"ambiguous key {key}: {[rule.torch for _, rule in matches]}")
        elif not matches and not table.ignored(key):
            faults.append(f"unexpected key {key}")
        elif matches and matches[0][0] not in leaves:
            faults.append(f"unexpected key {key}: this configuration has no such layer")
        elif matches:
            candidates.setdefault(matches[0][0], []).append((key, matches[0][1].layout))
    for path, variable in leaves.items():
        expected, layout = _torch_name(path, table)
        found = candidates.get(path, [])
        shape = _torch_shape(layout, variable.shape)
        if not found:
            faults.append(f"missing key {expected} {shape}")
        elif len(found) > 1:
            faults.append(f"keys {[key for key, _ in found]} all stand for {expected}")
        elif tensors[found[0][0]].shape != shape:
            faults.append(
                f"shape of {found[0][0]} is {tensors[found[0][0]].shape}, expected {shape}"
            )
    if faults:
        raise ConversionError(name, faults)
    return {path: found[0] for path, found in candidates.items()}


def _torch_name(path, table):
    matches = table.to_torch(path)
    if len(matches) != 1:
        raise ValueError(
            f"leaf {path} must match one rule, got {[rule.flax for _, rule in matches]}"
        )
    return matches[0][0], matches[0][1].layout


def _dotted(path) -> str:
    return ".".join(map(str, path))


def _torch_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    # One zero seen as so many: nothing is moved, and nothing is traced a thousand times for a net.
    return layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape
