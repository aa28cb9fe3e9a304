"""`fmv2 plan PRESET`."""

from collections.abc import Callable

from train.commands.presets import Flags, preset

_DOC = """Compile the step of this run without the devices it is for: {}

Says what memory it takes, what it costs and whether it fits; exits 1 where it does not.

Args:
  topology: a TPU such as v5e:4x4, which need not be here; this machine's devices when left out.
  search: find the largest batch per device that fits.
"""


def plan(name: str) -> Callable[..., int]:
    """The command of a preset."""
    default, about = preset(name)

    def command(
        config: Flags = default, *, topology: str | None = None, search: bool = False
    ) -> int:
        from train.plan import plan_run

        return plan_run(config, topology=topology, search=search)

    command.__doc__ = _DOC.format(about.splitlines()[0])
    return command
