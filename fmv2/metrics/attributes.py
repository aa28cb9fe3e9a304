"""Whether a picture shows what the prompt names, by the scorer's classes."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float


def fractions_true(
    logits: Mapping[str, Float[np.ndarray, "n c"]],
    asked: Sequence[Mapping[str, str]],
    classes: Mapping[str, Sequence[str]],
) -> Float[np.ndarray, " n"]:
    """Of each picture, how many of the attributes asked for are true; NaN where none was.

    Asked of other pictures' prompts it is the level of random pairs.

    Args:
      logits: by attribute, as `fmv2.metrics.scorer.Reading` has them.
      asked: of each picture, the class that the prompt names, by attribute.
      classes: of each attribute, in the order of its logits.
    """
    told = [list(row.values()) for row in answers(logits, asked, classes)]
    return np.array([np.mean(row) if row else np.nan for row in told])


def answers(
    logits: Mapping[str, Float[np.ndarray, "n c"]],
    asked: Sequence[Mapping[str, str]],
    classes: Mapping[str, Sequence[str]],
) -> list[dict[str, bool]]:
    """Of each picture, which of the attributes asked for are true; arguments as above.

    Raises:
      ValueError: an attribute or class that the scorer does not know.
    """
    known = {name: set(labels) for name, labels in classes.items()}
    unknown = {
        f"{name}={label}"
        for row in asked
        for name, label in row.items()
        if label not in known.get(name, ())
    }
    if unknown:
        raise ValueError(f"the scorer knows no {', '.join(sorted(unknown))}")
    seen = {name: np.asarray(x).argmax(axis=1) for name, x in logits.items()}
    return [
        {name: classes[name][int(seen[name][i])] == label for name, label in row.items()}
        for i, row in enumerate(asked)
    ]
