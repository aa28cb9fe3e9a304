"""`fmv2 train tiny-base`."""

import dataclasses
from importlib import import_module
from pathlib import Path

from train.config import TrainConfig
from train.presets.tiny_base import PARTS


def tiny_base(
    *, data: str, out: Path, steps: int | None = None, checkpoint_every: int | None = None
) -> int:
    """Train the embedded default's base model: all of its parts, one after another.

    Rerunning the same command resumes. Ctrl-C saves before it ends, and so does SIGTERM. The model
    is in OUT/models/tiny_unet when all is done; `fmv2 train tiny-vae` and so on are the parts.

    Args:
      data: the records: a folder that `fmv2 data synth` wrote.
      out: where runs and models go.
      steps: of each part, for trying it out; their own when left out.
      checkpoint_every: steps between checkpoints; the parts' own when left out.
    """
    from train.chain import train_chain  # late: help needs no devices

    return train_chain(parts(data, steps=steps, checkpoint_every=checkpoint_every), out)


def parts(
    data: str, *, steps: int | None = None, checkpoint_every: int | None = None
) -> dict[str, TrainConfig]:
    """The runs, in their order; arguments as of `tiny_base`."""
    fields = {"data": data, "steps": steps, "checkpoint_every": checkpoint_every}
    given = {name: value for name, value in fields.items() if value is not None}
    presets = {name: getattr(import_module(f"train.presets.{name}"), name)() for name in PARTS}
    return {name: dataclasses.replace(config, **given) for name, config in presets.items()}
