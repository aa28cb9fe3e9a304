"""What a TPU makes of the training step: the real TPU compiler's figures, ahead of time, anywhere.

    pip install -e '.[tpu]'
    python benchmarks/tpu_train_step.py --topology v5e:4x4 --chips all --out FILE.json

The step is the one that `fmv2 train` runs, in the preset's mesh. FLOPs, bytes, memory and
`estimated_cycles` are the compiler's own, for one chip; flash attention, inside which it counts
nothing, is added as `train.compiled.flash_calls` says. `mfu` is the FLOPs that the objective needs
(`train.flops`) over what the chip could do in the estimated time, `computed_fraction` the same of
all that is computed, recomputation included. Neither time nor cycles hold the collectives.

A compile of `sd15` is long: for one v5e at a batch of 16 more than an hour of processor time and
15 GB. Its memory and collectives are known after minutes, see benchmarks/results/train_step.md.
"""

import dataclasses
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

# The host has no TPU: compile for one from the CPU backend.
os.environ.update(JAX_PLATFORMS="cpu")

import jax
import tyro

from train.nets import Shapes
from train.plan import Plan, find_devices, for_devices, make_plan
from train.presets.sd15 import sd15


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compile the step of `sd15` for a TPU and print the compiler's figures."""

    topology: str = "v5e:2x2"
    """Any that JAX knows: v4, v5e, v5p, v6e, each with its grid."""
    chips: Literal["one", "all"] = "one"
    """One chip of it, or all of them with the batch split among them."""
    batch: int = 16
    """Samples per chip."""
    remat: bool = True
    """Compute each block's activations again on the way back."""
    identity: bool = False
    """With the identity term, which decodes one sample in eight."""
    out: Path | None = None
    """Where to write the JSON as well."""
    hlo: Path | None = None
    """Where to keep the compiled text."""


def main(settings: Settings) -> dict[str, Any]:
    """The figures of one compile."""
    devices = find_devices(settings.topology)
    devices = devices if settings.chips == "all" else devices[:1]
    preset = sd15()
    weight = preset.objective.id_weight if settings.identity else 0.0
    config = dataclasses.replace(
        preset,
        objective=dataclasses.replace(preset.objective, id_weight=weight),
        batch_size=settings.batch * len(devices),
        remat=settings.remat,
    )
    start = time.monotonic()
    plan, text = make_plan(for_devices(config, devices), Shapes.sd15(), devices)
    if settings.hlo:
        settings.hlo.write_text(text)
    return {
        "settings": {k: str(v) for k, v in dataclasses.asdict(settings).items() if v is not None},
        "versions": {name: version(name) for name in ("jax", "flax", "libtpu")},
        "seconds": round(time.monotonic() - start),
        **report(plan),
    }


def report(plan: Plan) -> dict[str, Any]:
    """A plan's figures for one chip, in units that are read easily."""
    chip, cost = plan.chip, plan.cost
    if chip is None or plan.seconds is None or plan.mfu is None:
        sys.exit(f"nothing is known here of a {plan.device}")
    giga = {**plan.memory._asdict(), "in all": plan.memory.total}
    return {
        "device": plan.device,
        "devices": plan.devices,
        "memory_gb": {kind: round(size / 1e9, 3) for kind, size in giga.items()},
        "arguments_gb": {kind: round(size / 1e9, 3) for kind, size in plan.held.items()},
        "fits": plan.fits,
        "tflop_needed": plan.needed_flops / 1e12,
        "tflop_computed": cost.flops / 1e12,
        "gigabytes_accessed": cost.bytes / 1e9,
        "megacycles": (cost.cycles or 0) / 1e6,
        "flash_calls": cost.flash_calls,
        "estimated_ms": plan.seconds * 1e3,
        "mfu": plan.mfu,
        "computed_fraction": cost.flops / (plan.seconds * chip.flops),
        "samples_per_second": plan.batch_per_device / plan.seconds,
        "collectives": {
            kind: {"count": count, "gigabytes": size / 1e9}
            for kind, (count, size) in plan.collectives.items()
        },
    }


if __name__ == "__main__":
    asked = tyro.cli(Settings)
    try:
        figures = json.dumps(main(asked), indent=2)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(f"does not fit: {str(error).splitlines()[0]}")
    print(figures)
    if asked.out:
        asked.out.write_text(figures + "\n")
