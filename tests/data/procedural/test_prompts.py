"""Prompts say all that they are asked to, in the grammar's words, and say that they do."""

import numpy as np
import pytest

from data.procedural import chance
from data.procedural.factors import ATTRIBUTES
from data.procedural.prompts import NAMED, prompt
from fmv2.tokens import EMBEDDED, Tokens


def test_every_attribute_is_named():
    classes = {
        "hair_style": "curly", "hair_color": "red", "lip_color": "purple", "beard": "none",
        "hat": "cap", "hat_color": "blue", "glasses": "round", "glasses_color": "gold",
        "cloth_color": "green",
    }  # fmt: skip
    made = prompt(classes)
    assert made.worded.text == (
        "a photo of a person with curly red hair and purple lips, "
        "wearing a blue cap, round gold glasses and a green shirt"
    )
    assert made.classes == {k: v for k, v in classes.items() if k != "beard"}
    regions = [phrase.region for phrase in made.worded.phrases]
    assert regions == ["hair", "lips", "hat", "glasses", "clothes"]
    first = made.worded.phrases[0]
    assert made.worded.text[first.start : first.end] == "curly red hair"


@pytest.mark.parametrize("names", [(), ("hat",), ("lip_color", "hair_style")])
def test_only_what_is_asked_for(names):
    classes = chance.named(chance.factors(0, 3, 1).classes)
    made = prompt(classes, names)
    assert set(made.classes) <= {*names, *(f"{name.split('_')[0]}_color" for name in names)}
    assert made == prompt(classes, names)


def test_the_tokenizer_knows_the_words_and_the_classes_are_said():
    tokens = Tokens.load(EMBEDDED)
    for item in range(50):
        classes = chance.named(chance.factors(1, item, item).classes)
        made = prompt(classes)
        assert len(made.worded.phrases) == sum(
            name in made.classes for name in ATTRIBUTES if name in NAMED
        )
        for attribute, value in made.classes.items():
            assert classes[attribute] == value
        ids = tokens.ids(made.worded.text)
        assert np.count_nonzero(ids != ids[-1]) < 60
