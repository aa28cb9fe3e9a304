"""Whether it is the same person, by any embedding whose cosine says so.

n pictures, m of a gallery, d numbers of an embedding. The controls come from the same functions:
pictures of a model that was shown no face, the true pictures (the floor), and other people's.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def cosines(
    found: Float[np.ndarray, "n d"], wanted: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """Of each picture and its reference, -1 to 1."""
    return (_unit(found) * _unit(wanted)).sum(axis=1)


def cosines_with_others(
    found: Float[np.ndarray, "n d"],
    people: Int[np.ndarray, " n"],
    wanted: Float[np.ndarray, "m d"],
    wanted_people: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " n"]:
    """The mean cosine of each picture with the references of all other people: what shuffling the
    references gives on average. Of true pictures it is the level of random pairs. NaN where there
    are no others.
    """
    cosine = _unit(found) @ _unit(wanted).T
    others = people[:, None] != wanted_people[None]
    with np.errstate(invalid="ignore"):
        return (cosine * others).sum(axis=1) / others.sum(axis=1)


def rank_one(
    found: Float[np.ndarray, "n d"],
    people: Int[np.ndarray, " n"],
    gallery: Float[np.ndarray, "m d"],
    gallery_people: Int[np.ndarray, " m"],
) -> Bool[np.ndarray, " n"]:
    """Whether the nearest of the gallery is the picture's person."""
    nearest = (_unit(found) @ _unit(gallery).T).argmax(axis=1)
    return gallery_people[nearest] == people


def rank_one_chance(
    people: Int[np.ndarray, " n"], gallery_people: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    """How often one drawn from the gallery is the picture's person."""
    return (people[:, None] == gallery_people[None]).mean(axis=1)


def equal_error_rate(
    found: Float[np.ndarray, "n d"],
    people: Int[np.ndarray, " n"],
    gallery: Float[np.ndarray, "m d"],
    gallery_people: Int[np.ndarray, " m"],
) -> float:
    """The rate at which pairs of one person are refused and pairs of two accepted, at the threshold
    of the cosine where both are alike: 0 at best, one half by chance.

    Between two thresholds, where the one rate overtakes the other, it is the mean of the two.
    """
    cosine = _unit(found) @ _unit(gallery).T
    alike = people[:, None] == gallery_people[None]
    same, different = np.sort(cosine[alike]), np.sort(cosine[~alike])
    thresholds = np.concatenate([same, different, [np.inf]])
    refused = np.searchsorted(same, thresholds) / len(same)
    accepted = 1 - np.searchsorted(different, thresholds) / len(different)
    nearest = np.abs(refused - accepted).argmin()
    return float(refused[nearest] + accepted[nearest]) / 2


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
