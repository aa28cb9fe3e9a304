"""What a run will need and how fast it may be, told by the compiler before any chip is at hand."""

import dataclasses
import importlib.util
import math
import os
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from fmv2.errors import UserError
from fmv2.parallel import make_mesh
from train.abstract import Program, program
from train.checks import check_batch, sample_unit
from train.compiled import Cost, Memory, collectives, cost, memory
from train.config import TrainConfig
from train.flops import step_flops
from train.hardware import Chip, chip
from train.nets import Shapes, open_base


class Plan(NamedTuple):
    """One compiled step."""

    device: str
    devices: int
    batch_per_device: float
    memory: Memory
    held: dict[str, int]
    """Bytes of one device's arguments, by what they are."""
    cost: Cost
    collectives: dict[str, tuple[int, int]]
    needed_flops: float
    """Of one device and step: what the objective asks for, nothing computed twice."""
    chip: Chip | None

    @property
    def fits(self) -> bool | None:
        """None where the device's memory is not known."""
        return None if self.chip is None else self.memory.total <= self.chip.memory

    @property
    def seconds(self) -> float | None:
        """Of one step: by the compiler's cycles, else by whichever of FLOPs and bytes takes longer.
        Neither counts the collectives."""
        if self.chip is None:
            return None
        if self.cost.cycles and self.chip.clock:
            return self.cost.cycles / self.chip.clock
        return max(self.cost.flops / self.chip.flops, self.cost.bytes / self.chip.bandwidth)

    @property
    def mfu(self) -> float | None:
        """Needed FLOPs over what the chip could do in that time."""
        if self.chip is None or not self.seconds:
            return None
        return self.needed_flops / (self.seconds * self.chip.flops)


def plan_run(config: TrainConfig, *, topology: str | None = None, search: bool = False) -> int:
    """Compiles the real step ahead of time and says what it takes.

    Args:
      config: the run. Without a base its nets are those of Stable Diffusion 1.5.
      topology: a TPU that need not be here, such as v5e:4x4 (pip install 'fmv2[tpu]'); the devices
        of this machine if not given.
      search: find the largest batch per device that fits, by doubling and halving.
    Returns:
      The exit status: 1 where it does not fit.
    Raises:
      UserError: topology, mesh, batch and base do not go together.
    """
    devices = find_devices(topology)
    shapes = Shapes.sd15() if config.base is None else Shapes.of(open_base(config.base))
    config = for_devices(config, devices)
    console = Console()
    with console.status(f"compiling for {len(devices)} × {devices[0].device_kind}"):
        if search:
            found = _largest(config, shapes, devices, console)
        else:
            found = _try(config, shapes, devices)
    if isinstance(found, str):
        console.print(f"does not fit: {found}", highlight=False)
        return 1
    console.print(_table(found))
    return 1 if found.fits is False else 0


def for_devices(config: TrainConfig, devices: list[Any]) -> TrainConfig:
    """With the attention kernel that `auto` is on those devices, which are not this machine's."""
    if config.attention == "auto" and devices[0].platform == "tpu":
        return dataclasses.replace(config, attention="pallas")
    return config


def make_plan(config: TrainConfig, shapes: Shapes, devices: list[Any]) -> tuple[Plan, str]:
    """The step compiled for these devices, and the compiled text.

    Raises:
      UserError: mesh and batch do not divide among them.
    """
    mesh = make_mesh(config.mesh, devices)
    check_batch(config, mesh)
    parts = program(config, shapes, mesh)
    compiled = parts.step.lower(parts.state, parts.frozen, parts.batch).compile()
    text = compiled.as_text()
    known = chip(devices[0].device_kind)
    plan = Plan(
        device=devices[0].device_kind,
        devices=len(devices),
        batch_per_device=config.batch_size / len(devices),
        memory=memory(compiled),
        held=_held(parts),
        cost=cost(compiled, known),
        collectives=collectives(text),
        needed_flops=step_flops(config, shapes).total / len(devices),
        chip=known,
    )
    return plan, text


def _held(parts: Program) -> dict[str, int]:
    state = parts.state
    kinds = {
        "trained weights": (state.params, state.stats),
        "optimizer": state.optimizer,
        "running mean": state.ema,
        "frozen weights": parts.frozen,
        "batch": parts.batch,
    }

    def size(x: Any) -> int:
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return {kind: sum(map(size, jax.tree.leaves(tree))) for kind, tree in kinds.items()}


def _largest(config: TrainConfig, shapes: Shapes, devices: list[Any], console: Console) -> Plan:
    """The largest batch per device that fits, a multiple of what one sample in `id_every` needs."""
    if chip(devices[0].device_kind) is None:
        kind = devices[0].device_kind
        raise UserError(
            f"the memory of a {kind} is not known here: name a --topology to search for"
        )
    unit = len(devices) * config.optimizer.accumulation * sample_unit(config)
    best, least, most = None, 1, math.inf
    times = 1
    while least < most:
        attempt = dataclasses.replace(config, batch_size=times * unit)
        found = _try(attempt, shapes, devices)
        fits = not isinstance(found, str) and found.fits
        per_device = attempt.batch_size // len(devices)
        console.print(f"batch {per_device} per device: {'fits' if fits else 'too large'}")
        if fits:
            best, least = found, times + 1
        else:
            most = times
        times = 2 * times if most == math.inf else (least + int(most)) // 2
    if not isinstance(best, Plan):
        raise UserError(
            f"not even {unit // len(devices)} samples per device fit: raise --mesh.fsdp or "
            "set --remat"
        )
    return best


def _try(config: TrainConfig, shapes: Shapes, devices: list[Any]) -> Plan | str:
    """The plan, or the compiler's words where it finds no room."""
    try:
        return make_plan(config, shapes, devices)[0]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return str(error).splitlines()[0]


def find_devices(topology: str | None) -> list[Any]:
    """Those of this machine, or of a TPU topology that need not be here.

    Raises:
      UserError: libtpu is missing, or does not know the topology.
    """
    if topology is None:
        return list(jax.devices())
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs its compiler: pip install 'fmv2[tpu]'")
    # No chip is used: ask no server which are here, and let others compile too.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # of several kinds
        raise UserError(f"{topology}: {error}: it takes a name such as v5e:4x4") from error
    return list(found.devices)


def _table(plan: Plan) -> Table:
    table = Table(title=f"{plan.devices} × {plan.device}, {plan.batch_per_device:g} samples each")
    table.add_column("per device")
    table.add_column("", justify="right")
    gb = 1e9
    for name, size in plan.held.items():
        table.add_row(f"  {name}", f"{size / gb:.2f} GB")
    for name, size in plan.memory._asdict().items():
        table.add_row(name, f"{size / gb:.2f} GB")
    room = "" if plan.chip is None else f" of {plan.chip.memory / gb:.1f}"
    table.add_row("memory in all", f"{plan.memory.total / gb:.2f}{room} GB")
    table.add_row("fits", {True: "yes", False: "NO", None: "not known"}[plan.fits])
    table.add_row("FLOPs computed", f"{plan.cost.flops / 1e12:.2f} T")
    table.add_row("FLOPs needed", f"{plan.needed_flops / 1e12:.2f} T")
    table.add_row("bytes accessed", f"{plan.cost.bytes / gb:.1f} GB")
    if plan.seconds is not None and plan.mfu is not None:
        by = "cycles" if plan.cost.cycles else "roofline"
        table.add_row(f"step time, estimated ({by})", f"{plan.seconds * 1e3:.0f} ms")
        table.add_row("MFU, estimated", f"{plan.mfu:.2f}")
    for kind, (count, size) in plan.collectives.items():
        table.add_row(f"{kind} × {count}", f"{size / gb:.3f} GB")
    return table
