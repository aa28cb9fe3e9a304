"""One mesh for every run: which device holds what, and how hosts find each other.

Axes: `data` splits the batch; `fsdp` splits the batch and every weight; `tensor` splits the inner
width of attention, feed-forward and residual blocks (Shoeybi et al. 2019, Megatron-LM). The SPMD
engine is JAX's own (Xu et al. 2021, GSPMD): all that is said here is where arrays lie.
"""

import dataclasses
import functools
import math
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fmv2.errors import UserError

T = TypeVar("T")

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""Those that split the batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are laid out. Their product is the number of devices."""

    data: int | None = None
    """Parts of the batch, beside those of fsdp; None is whatever devices are left."""
    fsdp: int = 1
    """Parts that weights, optimizer state and batch are split into."""
    tensor: int = 1
    """Parts that heads and hidden widths are split into."""

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in AXES}
        wrong = [f"mesh.{k}={n}" for k, n in sizes.items() if n is not None and n < 1]
        if wrong:
            raise UserError(f"{', '.join(wrong)}: expected 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """How the processes of one run find each other, where no TPU pod or SLURM tells them."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the same on all of them."""
    count: int | None = None
    """Processes in all."""
    index: int | None = None
    """Which of them this is, from 0."""

    def __post_init__(self):
        given = dataclasses.asdict(self)
        if missing := [f"hosts.{name}" for name, value in given.items() if value is None]:
            if len(missing) < len(given):
                raise UserError(
                    f"{', '.join(missing)} missing: the three of --hosts.coordinator, "
                    "--hosts.count and --hosts.index go together"
                )
            return
        if ":" not in str(self.coordinator):
            raise UserError(f"hosts.coordinator={self.coordinator}: expected HOST:PORT")
        if not 0 <= (self.index or 0) < (self.count or 0):
            raise UserError(f"hosts.index={self.index}: expected 0 to {(self.count or 0) - 1}")


def initialize_distributed(hosts: HostsConfig | None = None) -> None:
    """Joins the processes of a run; to be called before anything asks for a device.

    On a TPU pod, under SLURM and Open MPI they find each other; elsewhere `hosts` says where. One
    process alone stays alone.

    Args:
      hosts: None, or one without values, asks the cluster.
    """
    if jax.distributed.is_initialized():
        return
    if hosts is not None and hosts.coordinator is not None:
        jax.distributed.initialize(hosts.coordinator, hosts.count, hosts.index)
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:  # no cluster that it knows
        if "coordinator_address" not in str(error):
            raise
    except RuntimeError as error:  # devices are in use: whoever asked for them is alone
        if "before any JAX" not in str(error):
            raise


def agree(fingerprint: str) -> None:
    """Makes sure that all hosts are about to do the same.

    Args:
      fingerprint: a digest of config, records and base, of the same length everywhere.
    Raises:
      UserError: on every host, naming those that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    mine = f"{fingerprint} {socket.gethostname()}".encode()[:256].ljust(256)
    rows = np.asarray(multihost_utils.process_allgather(np.frombuffer(mine, np.uint8)))
    refuse_difference([bytes(row).decode().split() for row in rows])


def refuse_difference(told: Sequence[Sequence[str]]) -> None:
    """Raises the error of `agree`, from each process' fingerprint and host name, in order."""
    differ = [f"{host} (process {i})" for i, (x, host) in enumerate(told) if x != told[0][0]]
    if differ:
        raise UserError(
            f"{', '.join(differ)} would not run the same as {told[0][1]} (process 0): start the "
            "same command with the same code, records and base on every host"
        )


def make_mesh(config: MeshConfig, devices: Sequence[Any]) -> Mesh:
    """The mesh of these devices, which need not be here.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    fixed = config.fsdp * config.tensor * (config.data or 1)
    data = config.data or len(devices) // fixed
    if data * config.fsdp * config.tensor != len(devices):
        asked = f"data {config.data or 'any'} × fsdp {config.fsdp} × tensor {config.tensor}"
        raise UserError(
            f"mesh {asked} does not lay out {len(devices)} devices: make the product of "
            f"--mesh.data, --mesh.fsdp and --mesh.tensor {len(devices)}"
        )
    shape = (data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def under(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """The function with the mesh in sight while it is traced, which kernels of Pallas need."""

    @functools.wraps(function)
    def seen(*args: Any, **options: Any) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **options)

    return seen


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a batch: samples over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_ways(mesh: Mesh) -> int:
    """Parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


# Which dimension of a kernel the tensor axis splits, by the end of its path: columns of what fans
# out, rows of what fans in, so that between the two nothing is exchanged.
_COLUMNS = re.compile(
    r"(to_[qkv]|to_[kv]_ip|to_[qkv]_lora\.up|[qkv]_proj|fc1|conv1"
    r"|(ff|feed_forward|image_proj)\.proj_in)\.kernel$"
)
_ROWS = re.compile(
    r"(to_out|to_out_lora\.down|out_proj|fc2|conv2|(ff|feed_forward|image_proj)\.proj_out)\.kernel$"
)


def shardings(tree: Any, mesh: Mesh, *, but: str | None = None) -> Any:
    """Where each array of a tree lies: nets, training state, or shapes of either.

    Optimizer state and running means bear their parameter's path within their own, and so lie where
    it does. Vectors, scalars and dimensions that do not divide are on every device.

    Args:
      but: an axis that is to split nothing.
    """

    def place(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        axes = spec(name, leaf.shape, mesh)
        return NamedSharding(mesh, PartitionSpec(*(None if a == but else a for a in axes)))

    return jax.tree_util.tree_map_with_path(place, tree)


def spec(name: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Which axis splits which dimension of the array at a path.

    `tensor` splits what the tables above say; `fsdp` the largest of the other dimensions that
    divides, the later one of two alike.
    """
    axes: list[str | None] = [None] * len(shape)
    if len(shape) < 2:
        return PartitionSpec(*axes)

    def splits(dimension: int, axis: str) -> bool:
        return mesh.shape[axis] > 1 and shape[dimension] % mesh.shape[axis] == 0

    inner = -1 if _COLUMNS.search(name) else -2 if _ROWS.search(name) else None
    if inner is not None and splits(inner, "tensor"):
        axes[inner] = "tensor"
    by_size = sorted(range(len(shape)), key=lambda i: (shape[i], i), reverse=True)
    free = [i for i in by_size if axes[i] is None and splits(i, "fsdp")]
    if free:
        axes[free[0]] = "fsdp"
    return PartitionSpec(*axes)
