"""`fmv2 train tiny-base`."""

import dataclasses
import tempfile
from importlib import import_module
from pathlib import Path

from train.config import TrainConfig
from train.presets.tiny_base import PARTS

MODEL = "model"


def tiny_base(
    *, data: str, out: Path, steps: int | None = None, checkpoint_every: int | None = None
) -> int:
    """Train the embedded default's base model: all of its parts, one after another.

    Rerunning the same command resumes. Ctrl-C saves before it ends, and so does SIGTERM. The model
    is in OUT/model when all is done, in half precision and with the 3D head of the records;
    `fmv2 train tiny-vae` and so on are the parts.

    Args:
      data: the records: a folder that `fmv2 data synth` wrote.
      out: where runs and models go.
      steps: of each part, for trying it out; their own when left out.
      checkpoint_every: steps between checkpoints; the parts' own when left out.
    """
    from train.chain import train_chain  # late: help needs no devices

    status = train_chain(parts(data, steps=steps, checkpoint_every=checkpoint_every), out)
    if not status and not (out / MODEL).exists():
        asked = "" if steps is None else f" --steps {steps}"
        _complete(out, f"fmv2 train tiny-base --data {Path(data).name} --out {out.name}{asked}")
    return status


def _complete(out: Path, command: str) -> None:
    """The trained nets in half precision, with the head that all records show, and their recipe."""
    from convert.commands.transfer import transfer
    from convert.folder import written_whole
    from data.procedural.head import make_head
    from fmv2.face.head import Head, save_head
    from train.chain import MODELS
    from train.recipe import recipe

    made = make_head()
    with tempfile.TemporaryDirectory() as head, written_whole(out / MODEL) as model:
        save_head(Head(made.model, made.surface), Path(head))
        transfer([out / MODELS / PARTS[-1], Path(head)], model, dtype="float16")
        with (model / "README.md").open("a") as card:
            card.write(recipe([out / part for part in PARTS], command))


def parts(
    data: str, *, steps: int | None = None, checkpoint_every: int | None = None
) -> dict[str, TrainConfig]:
    """The runs, in their order; arguments as of `tiny_base`."""
    fields = {"data": data, "steps": steps, "checkpoint_every": checkpoint_every}
    given = {name: value for name, value in fields.items() if value is not None}
    presets = {name: getattr(import_module(f"train.presets.{name}"), name)() for name in PARTS}
    return {name: dataclasses.replace(config, **given) for name, config in presets.items()}
