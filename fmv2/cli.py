"""The `fmv2` command: it imports the one subcommand it was asked for and lets tyro read its types.

To add a subcommand, write a function with typed arguments and a docstring, and name it in COMMANDS.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union

import tyro

import fmv2
from fmv2.errors import UserError
from fmv2.interrupt import heard
from fmv2.memory import run_in_this_thread

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


class Command(NamedTuple):
    """One subcommand."""

    target: str  # "module:function"; what the function returns is the exit status, None being 0
    summary: str  # its line in the overview, kept here so that `fmv2 --help` imports no module
    preset: str | None = None  # what the target makes the function of, where it makes many

    def load(self) -> Callable[..., int | None]:
        run_in_this_thread()
        module, function = self.target.split(":")
        found = getattr(importlib.import_module(module), function)
        return found if self.preset is None else found(self.preset)


class Group(NamedTuple):
    """Subcommands under one word."""

    commands: Mapping[str, "Command | Group"]
    summary: str


# The modules of train.presets.
PRESETS = {
    "tiny": "Face-MakeUpV2 on the embedded default, at 128².",
    "tiny-vae": "The embedded default's VAE.",
    "tiny-clip": "The embedded default's text and image encoders.",
    "tiny-face": "The embedded default's face encoder.",
    "tiny-coefficients": "The embedded default's coefficient encoder.",
    "tiny-unet": "The embedded default's U-Net.",
    "tiny-scorer": "The net that scores what the embedded default draws.",
    "sd15": "Face-MakeUpV2 on Stable Diffusion 1.5, its known defects mended.",
    "sd15-upstream": "The published objective, for comparing with the original.",
    "sd15-pod": "sd15 on a TPU pod.",
}


def _of_presets(target: str, summary: str, more: Mapping[str, Command] = {}) -> Group:
    presets = {name: Command(target, line, name) for name, line in PRESETS.items()}
    return Group({**presets, **more}, summary)


COMMANDS = Group(
    {
        "quickstart": Command(
            "train.quickstart.command:quickstart",
            "Do the main job on a model small enough for any machine.",
        ),
        "sample": Command("fmv2.commands.sample:sample", "Draw pictures of a prompt and a face."),
        "convert": Group(
            {
                "from-diffusers": Command(
                    "convert.commands.from_diffusers:from_diffusers", "Read PyTorch checkpoints."
                ),
                "to-diffusers": Command(
                    "convert.commands.to_diffusers:to_diffusers",
                    "Write a folder that stock diffusers loads.",
                ),
                "to-scorer": Command(
                    "convert.commands.to_scorer:to_scorer",
                    "Write the folder of a scorer that a run has trained.",
                ),
                "verify": Command(
                    "convert.commands.verify:verify",
                    "Run a folder in PyTorch and in Flax and compare.",
                ),
                "inspect": Command(
                    "convert.commands.inspect:inspect",
                    "Say what a checkpoint holds and what it lacks.",
                ),
            },
            "Carry weights between PyTorch diffusers and Flax.",
        ),
        "data": Group(
            {
                "synth": Command(
                    "data.commands.synth:synth", "Make records from the procedural face world."
                ),
                "build": Command(
                    "data.commands.build:build", "Make records from upstream's layout."
                ),
                "encode": Command(
                    "data.commands.encode:encode", "Add the latent moments of a model's VAE."
                ),
                "inspect": Command(
                    "data.commands.inspect:inspect", "Look at a data set's records."
                ),
            },
            "Make records for training, and look at them.",
        ),
        "train": _of_presets(
            "train.commands.train:train",
            "Train a preset, or resume: rerun the same command.",
            {
                "tiny-base": Command(
                    "train.commands.tiny_base:tiny_base",
                    "All parts of the embedded default's base, one after another.",
                )
            },
        ),
        "plan": _of_presets(
            "train.commands.plan:plan", "Say what a preset needs and how fast it may be."
        ),
    },
    "Train, convert, run and measure Face-MakeUpV2 in JAX. `fmv2 --version` prints the version.",
)


def main(args: Sequence[str] | None = None, commands: Group = COMMANDS) -> int | None:
    """Run one subcommand.

    Args:
      args: the words after `fmv2`; those of the process when None.
      commands: what may be run.
    Returns:
      The exit status, None being 0; 2 after a UserError, whose message went to stderr; 130 after
      Ctrl-C.
    Raises:
      SystemExit: help was asked for, or the words cannot be read; tyro has said what is wrong.
    """
    args = sys.argv[1:] if args is None else list(args)
    if args == ["--version"]:
        print(f"fmv2 {fmv2.__version__}")
        return 0

    found: Command | Group = commands
    prog = "fmv2"
    while isinstance(found, Group):
        word = args[0].replace("_", "-") if args else ""  # tyro reads both alike
        if word not in found.commands:
            tyro.cli(_overview(found), prog=prog, description=found.summary, args=args)
        found = found.commands[word]
        prog = f"{prog} {word}"
        args = args[1:]
    try:
        with heard():
            return tyro.cli(found.load(), prog=prog, args=args)
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: stopped", file=sys.stderr)
        return INTERRUPTED


def _overview(group: Group) -> Any:
    """A type from which tyro writes the group's help and its complaint about any other word."""
    choices = [
        Annotated[
            Any, tyro.conf.subcommand(word, description=entry.summary, constructor=lambda: None)
        ]
        for word, entry in group.commands.items()
    ]
    # A union needs two members, and a group may have one command.
    return Union[*choices, Annotated[None, tyro.conf.Suppress]]  # type: ignore[valid-type]
