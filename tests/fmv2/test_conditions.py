"""Parts of a head replaced, and identities mixed."""

import numpy as np
import pytest

from fmv2.conditions import NEUTRAL_LIGHT, Conditions, change, mix
from fmv2.errors import UserError
from fmv2.models.coefficient_encoder import COUNTS, Coefficients


def head(seed: int) -> Coefficients:
    rng = np.random.default_rng(seed)
    fields = [rng.normal(size=count).astype(np.float32) for count in COUNTS]
    fields[-1] = fields[-1].reshape(9, 3)
    return Coefficients(*fields)


ONE, OTHER = head(0), head(1)


def same(found, **parts) -> None:
    for name, expected in (ONE._asdict() | parts).items():
        np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)


def test_nothing_changes_unless_asked():
    made, faults = change(ONE, None, None, None)
    assert not faults
    same(made)


def test_neutral():
    zeros = np.zeros(3)
    jaw, turn = ONE.pose[3:], ONE.pose[:3]
    expression, _ = change(ONE, "neutral", None, None)
    same(expression, expression=np.zeros(50), pose=np.concatenate([turn, zeros]))
    pose, _ = change(ONE, None, "neutral", None)
    same(pose, pose=np.concatenate([zeros, jaw]))
    light, _ = change(ONE, None, None, "neutral")
    same(light, light=NEUTRAL_LIGHT)


def test_another_face_gives_its_part():
    jaw, turn = ONE.pose[3:], ONE.pose[:3]
    expression, _ = change(ONE, OTHER, None, None)
    mouth = np.concatenate([turn, OTHER.pose[3:]])
    same(expression, expression=OTHER.expression, pose=mouth)
    same(change(ONE, None, OTHER, None)[0], pose=np.concatenate([OTHER.pose[:3], jaw]))
    same(change(ONE, None, None, OTHER)[0], light=OTHER.light)


def test_numbers():
    smile = np.float32([1, 2])
    made, faults = change(ONE, smile, [0.1, 0.2, 0.3], np.arange(27.0))
    assert not faults
    same(
        made,
        expression=np.pad(smile, (0, 48)),
        pose=np.concatenate([np.float32([0.1, 0.2, 0.3]), ONE.pose[3:]]),
        light=np.arange(27.0).reshape(9, 3),
    )
    same(change(ONE, None, OTHER.pose, None)[0], pose=OTHER.pose)
    # The pose's own jaw goes before the expression's.
    assert change(ONE, "neutral", np.asarray(OTHER.pose), None)[0].pose[3:].all()


def test_all_faults_are_told():
    _, faults = change(ONE, np.zeros(51), "calm", np.full((9, 3), np.nan))  # type: ignore[arg-type]
    assert [fault.split("=")[0].split(" ")[0] for fault in faults] == [
        "expression",
        "pose",
        "light",
    ]


def person(seed: int) -> Conditions:
    rng = np.random.default_rng(seed)
    identity = rng.normal(size=8).astype(np.float32)
    return Conditions(
        identity=identity / np.linalg.norm(identity),
        features=rng.normal(size=(3, 4)).astype(np.float32),
        shading=np.full((8, 8, 3), seed, np.uint8),
    )


def test_a_mixture_has_unit_length_and_lies_between():
    a, b = person(1), person(2)
    made = mix([(a, 3), (b, 1)])
    np.testing.assert_allclose(np.linalg.norm(made.identity), 1, rtol=1e-6)
    assert made.identity @ a.identity > made.identity @ b.identity
    np.testing.assert_allclose(made.features, 0.75 * a.features + 0.25 * b.features, rtol=1e-5)
    assert made.shading is a.shading
    alone = mix([(a, 1), (b, 0)])
    np.testing.assert_allclose(alone.identity, a.identity, rtol=1e-6)


@pytest.mark.parametrize("weights", [(0, 0), (-1, 2), (np.nan, 1)])
def test_weights_that_mix_nothing(weights):
    with pytest.raises(UserError, match="weights"):
        mix(list(zip((person(1), person(2)), weights, strict=True)))
