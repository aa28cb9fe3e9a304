"""What the trained model is asked for: people that nothing has seen, in other people's scenes."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from data.procedural import chance, world
from data.procedural.factors import CLASSES, PERSON, Factors
from data.procedural.prompts import Prompt, prompt
from data.procedural.world import Regions, World


class Scenes(NamedTuple):
    """So many held-out people, each with a picture and a scene to be put into; NumPy."""

    references: UInt8[np.ndarray, "n s s 3"]
    """A picture of each person: all that the model sees of them."""
    reference_shadings: UInt8[np.ndarray, "n s s 3"]
    targets: Factors
    """The same people with the expression, pose, light and dress of others, batched."""
    truths: UInt8[np.ndarray, "n s s 3"]
    """How that looks."""
    truth_shadings: UInt8[np.ndarray, "n s s 3"]
    prompts: tuple[Prompt, ...]
    """What is said of it."""
    masks: tuple[Mapping[str, Bool[np.ndarray, "s s"]], ...]
    """Where on it each region is that the prompt names."""
    strangers: UInt8[np.ndarray, "m s s 3"]
    """Pictures of more held-out people, among whom the others are to be told."""


def held_out(of: World, count: int, strangers: int) -> Scenes:
    """Scenes of so many people, the first who are in none of this world's records, and so many
    strangers, who are the next.

    Each stays under the camera of their own picture, as a person who asks for another pose does.
    """
    first = math.ceil(of.count / of.images_per_identity)
    people = range(first, first + count + strangers)
    all_own = [
        chance.factors(of.seed, of.images_per_identity * number, number) for number in people
    ]
    own = all_own[:count]
    targets = [into(person, scene) for person, scene in zip(own, _others(own), strict=True)]
    drawn = world.draw([*targets, *all_own], of.size)
    bounds = [0, count, 2 * count, None]
    made, seen, others = (
        {name: x[first:last] for name, x in drawn.items()}
        for first, last in itertools.pairwise(bounds)
    )
    regions = [
        Regions(labels, beard) for labels, beard in zip(made["labels"], made["beard"], strict=True)
    ]
    prompts = tuple(
        prompt(found.seen(chance.named(target.classes)))
        for found, target in zip(regions, targets, strict=True)
    )
    return Scenes(
        references=seen["image"],
        reference_shadings=seen["shading"],
        targets=chance.stack(targets),
        truths=made["image"],
        truth_shadings=made["shading"],
        prompts=prompts,
        masks=tuple(
            {phrase.region: found.mask(phrase.region) for phrase in said.worded.phrases}
            for found, said in zip(regions, prompts, strict=True)
        ),
        strangers=others["image"],
    )


def into(person: Factors, scene: Factors) -> Factors:
    """A person in the scene of another, before their own camera."""
    mine = np.array([name in PERSON for name in CLASSES])
    return dataclasses.replace(
        scene,
        identity=person.identity,
        classes=np.where(mine, person.classes, scene.classes),
        camera=person.camera,
    )


def _others(own: Sequence[Factors]) -> list[Factors]:
    return [*own[1:], own[0]]
