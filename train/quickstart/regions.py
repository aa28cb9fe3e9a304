"""Whether a phrase acts where it belongs: where it looks, and what changes with its words."""

from collections.abc import Mapping

import numpy as np
from rich.console import Console

from data.procedural.prompts import Prompt, prompt
from fmv2.conditions import Conditions
from fmv2.metrics.estimate import Estimate, estimate
from fmv2.metrics.regions import attention_iou, chance_iou, change
from fmv2.metrics.report import Demand, Figure
from fmv2.pipeline import FaceMakeUp
from train.quickstart.pictures import OURS, attention_in, draw
from train.quickstart.scenes import Scenes

NO_MAP = "without map loss"
_PAINTED, _OTHERWISE = "purple", "red"
"""What lips become when one word of a prompt is changed, and what purple ones do."""


def attention(
    mapped: Mapping[str, FaceMakeUp],
    whole: FaceMakeUp,
    scenes: Scenes,
    conditions: list[Conditions],
    few: int,
) -> list[Figure]:
    """On the true pictures, whose regions are known exactly."""
    pairs = [
        (number, k, scenes.masks[number][phrase.region])
        for number, said in enumerate(scenes.prompts)
        for k, phrase in enumerate(said.worded.phrases)
    ]
    people = np.array([number for number, _, _ in pairs])

    def found(model: FaceMakeUp) -> Estimate:
        maps = attention_in(model, scenes.truths, scenes.prompts, conditions)
        values = [attention_iou(maps[number][k], mask) for number, k, mask in pairs]
        return estimate(np.array(values), people)

    chance = estimate(np.array([chance_iou(mask) for _, _, mask in pairs]), people)
    told = {
        "group": "text",
        "meaning": "Intersection over union of a phrase's region and as much of the picture as its"
        " tokens attend to most.",
        "better": "higher",
        "random": chance,
    }
    return [
        Figure(
            name=f"attention on the region, {few} steps",
            value=found(mapped[OURS]),
            controls={NO_MAP: found(mapped[NO_MAP])},
            demands=(Demand(than=NO_MAP),),
            **told,
        ),
        Figure(
            name="attention on the region, all steps",
            value=found(whole),
            demands=(Demand(than="at random"),),
            **told,
        ),
    ]


def changes(
    mapped: Mapping[str, FaceMakeUp],
    scenes: Scenes,
    conditions: list[Conditions],
    console: Console,
    few: int,
) -> list[Figure]:
    """The same noise, face and shading; one word of the prompt is another."""
    there = [number for number, found in enumerate(scenes.masks) if "lips" in found]
    people, faces = np.array(there), [conditions[number] for number in there]
    prompts = [scenes.prompts[number] for number in there]
    texts = [[said.worded.text for said in some] for some in (prompts, map(_repainted, prompts))]
    outside = ~np.stack([scenes.masks[number]["lips"] for number in there])
    moved = {}
    for name, model in mapped.items():
        one, other = (draw(model, some, faces, console, f"lips, {name}") for some in texts)
        moved[name] = estimate(change(one, other, outside), people)
    return [
        Figure(
            group="text",
            name=f"change outside the region, {few} steps",
            meaning="Root mean square difference, of [0, 1], that another colour of lips in the"
            " prompt makes outside of the lips.",
            better="lower",
            value=moved[OURS],
            controls={NO_MAP: moved[NO_MAP]},
            digits=4,
            demands=(Demand(than=NO_MAP),),
        )
    ]


def _repainted(said: Prompt) -> Prompt:
    color = _OTHERWISE if said.classes["lip_color"] == _PAINTED else _PAINTED
    return prompt({**said.classes, "lip_color": color})
