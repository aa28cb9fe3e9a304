"""Chance repeats itself, keeps people apart, and never draws what cannot be."""

import numpy as np
import pytest

from data.procedural import chance
from data.procedural.factors import ATTRIBUTES, CLASSES, EMOTIONS, EXPRESSION, PERSON
from fmv2.face.shading import BASIS_SCALES


@pytest.fixture(scope="module")
def pictures():
    """Six pictures of each of 100 people."""
    return [chance.factors(3, item, item // 6) for item in range(600)]


def test_the_same_seed_and_item_give_the_same(pictures):
    again, other = chance.factors(3, 17, 2), chance.factors(4, 17, 2)
    for name, value in vars(pictures[17]).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert not np.array_equal(other.identity, again.identity)
    assert not np.array_equal(other.light, again.light)


def test_a_person_stays_the_same_and_the_picture_changes(pictures):
    own = [list(CLASSES).index(name) for name in PERSON]
    for person in range(100):
        mine = pictures[6 * person : 6 * person + 6]
        for picture in mine:
            np.testing.assert_array_equal(picture.identity, mine[0].identity)
            np.testing.assert_array_equal(picture.classes[own], mine[0].classes[own])
        assert len({picture.rotation.tobytes() for picture in mine}) == 6
        assert len({picture.classes.tobytes() for picture in mine}) > 1
    assert len({picture.identity.tobytes() for picture in pictures}) == 100


def test_all_classes_and_emotions_occur(pictures):
    for place, (name, labels) in enumerate(CLASSES.items()):
        assert {int(p.classes[place]) for p in pictures} == set(range(len(labels))), name
    assert {int(p.emotion) for p in pictures} == set(range(len(EMOTIONS)))


def test_what_says_nothing_is_the_first_class(pictures):
    for picture in pictures:
        named = chance.named(picture.classes)
        if named["hat"] == "none":
            assert named["hat_color"] == ATTRIBUTES["hat_color"][0]
        else:
            assert named["bangs"] == "none"
            assert named["hair_style"] not in ("bun", "curly")
        if named["hair_style"] == "bald":
            assert named["bangs"] == "none"
        if named["earrings"] == "none":
            assert named["earring_color"] == ATTRIBUTES["earring_color"][0]


def test_light_is_never_negative_nor_burnt_out(pictures):
    normals = np.random.default_rng(0).standard_normal((4000, 3))
    x, y, z = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).T
    basis = np.stack([np.ones_like(x), x, y, z, x * y, x * z, y * z, x**2 - y**2, 3 * z**2 - 1])
    lights = np.stack([picture.light for picture in pictures]) * np.array(BASIS_SCALES)[:, None]
    irradiance = np.einsum("kn,bkc->bnc", basis, lights)
    assert irradiance.min() > 0
    assert irradiance.max() < 1.42
    # Lit from either side, and from in front more than from behind.
    assert (lights[:, 1].mean(1) > 0.1).mean() > 0.2
    assert (lights[:, 1].mean(1) < -0.1).mean() > 0.2
    assert lights[:, 3].mean() > 0.1


def test_expressions_show_their_emotion(pictures):
    def strongest(emotion, field):
        of = [
            p.expression[EXPRESSION.index(field)]
            for p in pictures
            if EMOTIONS[p.emotion] == emotion
        ]
        return np.min(of)

    assert strongest("happy", "smile") > 0.5
    assert strongest("surprised", "brow_raise") > 0.7
    assert strongest("sleepy", "blink_left") > 0.8
    for picture in pictures:
        assert 0 <= picture.expression.min() <= picture.expression.max() <= 1
        left, right = (
            picture.expression[EXPRESSION.index(f"blink_{s}")] for s in ("left", "right")
        )
        assert (min(left, right) == 0 < max(left, right)) == (
            EMOTIONS[picture.emotion] == "winking"
        )


def test_codes_tell_people_apart_and_nothing_else(pictures):
    codes = np.stack([chance.identity_code(p) for p in pictures])
    assert codes.shape == (600, 512)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-5)
    likeness = codes @ codes.T
    same = np.arange(600)[:, None] // 6 == np.arange(600)[None] // 6
    assert likeness[same].min() > 0.9999
    assert likeness[~same].max() < 0.95
    nearly = chance.factors(3, 0, 0)
    nearly.identity[:] += 0.05
    assert chance.identity_code(nearly) @ codes[0] > 0.99


def test_the_head_turns_by_its_angles(pictures):
    angles = np.linalg.norm([p.rotation for p in pictures], axis=1)
    assert np.degrees(angles).max() < 50
    yaws = np.array([p.rotation[1] for p in pictures])
    assert np.degrees(np.std(yaws)) > 12
