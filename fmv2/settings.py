"""How a picture is drawn: every knob with its default, its range and what it does."""

import dataclasses
import math
from typing import Literal, TypedDict, get_args

from fmv2.diffusion import samplers
from fmv2.diffusion.sampling import Sampler
from fmv2.diffusion.schedule import NoiseSchedule

SamplerName = Literal["ddim", "dpm++", "euler", "euler-ancestral"]
_SAMPLERS = {
    "ddim": samplers.ddim,
    "dpm++": samplers.dpm_solver_pp_2m,
    "euler": samplers.euler,
    "euler-ancestral": samplers.euler_ancestral,
}
_LARGEST_SEED = 2**32 - 1
_LARGEST_SCALE, _LARGEST_GUIDANCE = 2.0, 100.0


class Knobs(TypedDict, total=False):
    """The fields of `Settings`, as `FaceMakeUp` takes them."""

    steps: int
    sampler: SamplerName
    guidance_scale: float
    id_scale: float
    s_scale: float
    shading_scale: float
    shading_guidance: bool
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The scales' defaults are upstream's."""

    steps: int = 25
    """Denoising steps."""
    sampler: SamplerName = "ddim"
    """Which way they go; dpm++ is DPM-Solver++(2M)."""
    guidance_scale: float = 7.5
    """How far prompt and face lead away from the negative prompt without a face, 0 to 100; 1 takes
    half of the time."""
    id_scale: float = 0.7
    """Of the attention to the identity, 0 to 2. 0 takes the whole adapter away, its LoRA too, and
    tells the ShadingNet of nobody."""
    s_scale: float = 0.7
    """How much of the face's structure enters beside its identity, 0 to 2."""
    shading_scale: float = 0.5
    """Of the shading map, 0 to 2. 0 takes the ShadingNet away."""
    shading_guidance: bool = False
    """Let guidance lead away from a picture without the shading map, too, so that it is obeyed
    further; upstream's negative half has the map."""
    seed: int = 0
    """0 to 2³²-1. Picture i of a seed begins with the same noise whatever is drawn beside it."""

    def faults(self) -> list[str]:
        """What is out of range, all of it."""
        names, scales = get_args(SamplerName), ("id_scale", "s_scale", "shading_scale")
        limits = {
            "steps": (type(self.steps) is int and self.steps >= 1, "a whole number from 1"),
            "sampler": (self.sampler in names, f"one of {', '.join(names)}"),
            "guidance_scale": (
                _within(self.guidance_scale, _LARGEST_GUIDANCE),
                f"0 to {_LARGEST_GUIDANCE:g}",
            ),
            **{
                name: (_within(getattr(self, name), _LARGEST_SCALE), f"0 to {_LARGEST_SCALE:g}")
                for name in scales
            },
            "shading_guidance": (isinstance(self.shading_guidance, bool), "True or False"),
            "seed": (
                type(self.seed) is int and 0 <= self.seed <= _LARGEST_SEED,
                f"a whole number from 0 to {_LARGEST_SEED}",
            ),
        }
        return [
            f"{name}={getattr(self, name)!r}: expected {wanted}"
            for name, (holds, wanted) in limits.items()
            if not holds
        ]

    def table(self, schedule: NoiseSchedule) -> Sampler:
        """The sampler of these steps.

        Raises:
          ValueError: more steps than the schedule has.
        """
        return _SAMPLERS[self.sampler](schedule, self.steps)


def _within(value: float, most: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= most
