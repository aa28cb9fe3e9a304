"""Presets as commands: every field of a preset is a flag whose default the preset gives."""

import importlib
from typing import Annotated

from tyro.conf import AvoidSubcommands, arg

from train.config import TrainConfig

Flags = Annotated[TrainConfig, arg(name=""), AvoidSubcommands]
"""--steps and --optimizer.learning-rate; the objective's kind is the preset's."""


def preset(name: str) -> tuple[TrainConfig, str]:
    """A run by the name of its module in `train.presets`, and what that says of itself."""
    name = name.replace("-", "_")
    module = importlib.import_module(f"train.presets.{name}")
    assert module.__doc__ is not None
    return getattr(module, name)(), module.__doc__
