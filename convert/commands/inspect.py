"""`fmv2 convert inspect`."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from convert.components import COMPONENTS, plan
from convert.engine import ConversionError, TensorRef, torch_shapes
from convert.kinds import Part, Source
from convert.runs import base_of, identify, is_run
from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.unet import UNetConfig


def inspect(path: Positional[Path], /, *, base: Path | None = None) -> int:
    """Say what a checkpoint holds, and what it lacks; exits 1 where it lacks anything.

    Args:
      path: a file or folder.
      base: whose U-Net a lone adapter or ShadingNet belongs to; by default a training run's own,
        and Stable Diffusion 1.5 for others.
    """
    if base is None and is_run(path):
        base = base_of(path)
    source = identify(path)
    faults = [f"unknown tensor {name}" for name in source.unknown]
    faults += _faults(source, base)
    console = Console()
    console.print(f"{path}: {source.kind}", highlight=False, soft_wrap=True)
    console.print(_table(source.parts))
    for note in source.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    for fault in faults:
        console.print(f"fault: {fault}", highlight=False, soft_wrap=True)
    if faults and base is None and "unet" not in source.parts:
        mend = "held against Stable Diffusion 1.5: name another base with --base FOLDER"
        console.print(f"note: {mend}", highlight=False, soft_wrap=True)
    return int(bool(faults))


def _table(parts: Mapping[str, Part]) -> Table:
    table = Table("component", "tensors", "parameters", "dtypes")
    for name, part in parts.items():
        refs = part.tensors.values()
        table.add_row(
            COMPONENTS[name].title if name in COMPONENTS else name,
            str(len(refs)),
            f"{sum(math.prod(ref.shape) for ref in refs):,}",
            ", ".join(sorted({ref.dtype.name for ref in refs})),
        )
    return table


def _faults(source: Source, base: Path | None) -> list[str]:
    """What the engine would refuse."""
    unet = UNetConfig.sd15()
    if base is not None:
        part = identify(base).parts.get("unet")
        if part is None or part.config is None:
            raise UserError(f"{base}: holds no U-Net with its config.json")
        unet = UNetConfig.from_config(part.config)
    parts = dict(source.parts)
    if lora := parts.pop("lora", None):
        parts["adapter"] = _completed(lora, unet)
    try:
        plan(parts, unet)
    except ConversionError as e:
        return e.faults
    return []


def _completed(lora: Part, unet: UNetConfig) -> Part:
    """The LoRA in an adapter that lacks nothing else."""
    component = COMPONENTS["adapter"]
    config = component.shape(lora, unet)
    net = abstract(component.net, config)
    rest = {
        name: TensorRef(shape, np.dtype(np.float32), read=lambda: np.zeros(()))
        for name, shape in torch_shapes(net, component.table(config)).items()
        if "_lora." not in name
    }
    return Part(rest | lora.tensors)
