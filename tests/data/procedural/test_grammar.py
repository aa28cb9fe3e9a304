"""Rules grow into marked text, and marks become spans."""

import numpy as np

from data.procedural.grammar import Phrase, grow, listed, places, read


def test_marks_become_spans():
    worded = read("a [red hat@hat] and [lips@lips].", capital=False)
    assert worded.text == "a red hat and lips."
    assert worded.phrases == (Phrase(2, 9, "hat"), Phrase(14, 18, "lips"))


def test_articles_and_capitals():
    worded = read("a [orange hat@hat]. a angry person. [eyes@eyes] of a man", capital=True)
    assert worded.text == "An orange hat. An angry person. Eyes of a man"
    assert [worded.text[p.start : p.end] for p in worded.phrases] == ["orange hat", "Eyes"]


def test_every_alternative_grows_and_no_other():
    rules = {"thing": "[{color} hat@hat] | cap", "color": "red | blue"}
    rng = np.random.default_rng(0)
    grown = {grow("a {thing}|| no", rules, rng) for _ in range(200)}
    assert grown == {"a [red hat@hat]", "a [blue hat@hat]", "a cap", "", "no"}
    assert places("a {thing} {color} | {thing}") == {"thing", "color"}


def test_lists():
    rng = np.random.default_rng(0)
    assert listed(["a"], "and", rng) == "a"
    assert listed(["a", "b"], "or", rng) == "a or b"
    three = {listed(["a", "b", "c"], "and", rng) for _ in range(50)}
    assert three == {"a, b and c", "a, b, and c"}
