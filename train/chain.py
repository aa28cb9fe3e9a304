"""A base model in parts: each part a run of its own, from the model folder of the part before.

    OUT/tiny_vae/ OUT/tiny_clip/ …      the runs
    OUT/models/tiny_vae/ …              the model folder after each part, with all that came before

Rerunning the same command goes on where it was: runs resume, and a part whose folder is there is
done.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from convert.commands.to_diffusers import to_diffusers
from train.config import TrainConfig
from train.loop import train

MODELS = "models"


def train_chain(
    parts: Mapping[str, TrainConfig], out: Path, *, run: Callable[[TrainConfig], int] = train
) -> int:
    """Trains the parts one after another.

    Args:
      parts: in their order, by name, each with its data. The first may have a base of its own;
        those of the others are the folders written here.
      out: where all of it goes; no bucket.
      run: trains one part, and returns its exit status.
    Returns:
      0, or the exit status of the part that did not end well.
    Raises:
      UserError: what the user can mend.
    """
    base = next(iter(parts.values())).base
    for name, config in parts.items():
        model = out / MODELS / name
        if not model.exists():
            status = run(dataclasses.replace(config, base=base, out=str(out / name)))
            if status:
                return status
            if jax.process_index() == 0:
                to_diffusers(out / name, model, base=base)
            multihost_utils.sync_global_devices(name)
        base = model
    return 0
