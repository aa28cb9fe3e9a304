"""`fmv2 train PRESET`."""

import json
from collections.abc import Callable

import jax
from rich.console import Console

from train.checks import check
from train.commands.presets import Flags, preset
from train.config import to_dict

_DOC = """Rerunning the same command resumes. Ctrl-C saves before it ends, and so does SIGTERM.

Args:
  dry_run: print the config and check all that can be checked without computing.
"""


def train(name: str) -> Callable[..., int]:
    """The command of a preset."""
    default, about = preset(name)

    def command(config: Flags = default, *, dry_run: bool = False) -> int:
        if dry_run:
            return show(config)
        from train.loop import train

        return train(config)

    command.__doc__ = f"{about}\n{_DOC}"
    return command


def show(config: Flags) -> int:
    """Prints the config, then what the run would begin with.

    Raises:
      UserError: why it could not begin.
    """
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(json.dumps(to_dict(config), indent=2))
    inputs = check(config)
    mesh = " × ".join(f"{axis} {size}" for axis, size in inputs.mesh.shape.items())
    say(f"mesh {mesh} of {jax.device_count()} × {jax.devices()[0].device_kind}")
    say(f"trains {', '.join(config.objective.trained)}; reads {', '.join(config.objective.frozen)}")
    records = ", ".join(f"{n} to {split}" for split, n in inputs.dataset.splits.items())
    say(f"records: {records}")
    say("begins afresh" if inputs.newest is None else f"resumes at step {inputs.newest}")
    return 0
