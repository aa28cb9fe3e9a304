"""Attributes asked for, against logits."""

import numpy as np
import pytest

from fmv2.metrics.attributes import answers, fractions_true

CLASSES = {"hat": ("none", "cap", "beanie"), "lips": ("natural", "red")}
# Seen: a cap and red lips; a beanie and natural ones; no hat and red ones.
LOGITS = {
    "hat": np.array([[0.0, 2.0, 1.0], [-3.0, -2.0, -1.0], [1.0, 0.0, 0.0]]),
    "lips": np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]),
}


def test_only_what_is_asked_for_counts():
    asked = [{"hat": "cap", "lips": "natural"}, {"hat": "beanie"}, {}]
    assert answers(LOGITS, asked, CLASSES) == [
        {"hat": True, "lips": False},
        {"hat": True},
        {},
    ]
    np.testing.assert_array_equal(fractions_true(LOGITS, asked, CLASSES), [0.5, 1, np.nan])


def test_what_the_scorer_does_not_know_is_named():
    with pytest.raises(ValueError, match="the scorer knows no hat=crown, shoes=red"):
        fractions_true(LOGITS, [{"hat": "crown", "shoes": "red"}, {}, {}], CLASSES)
