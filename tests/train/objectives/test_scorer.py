"""The scorer's objective: it learns each thing, knows nothing else, and pictures stay pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.procedural.factors import CLASSES, EMOTIONS, EXPRESSION, IDENTITY
from data.schema import COEFFICIENTS
from fmv2.errors import UserError
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig
from tests.train.batches import changed, face_batch
from tests.train.objectives.learning import fresh_nets, learn, mean, unmoved
from train.objectives.scorer import Scorer

TRUNK = dataclasses.replace(
    CoefficientEncoderConfig.tiny(), layers=(1, 1, 1, 1), widths=(4, 4, 4, 6), image_size=32
)
TINY = Scorer(trunk=TRUNK, channels=8, softened=0.0, noise=0.0, gain=0.0)
CAMERA = np.array([6.2, 0.01, 0.0], "f")
TERMS = ("shape", "expression", "pose", "camera", "light", "classes")


def pictures(count=8):
    batch, _ = face_batch(count, size=32, face=16)
    rng = np.random.default_rng(1)
    wanted = {
        name: 0.5 * rng.normal(size=(count, *shape)).astype(np.float32)
        for name, (shape, _) in COEFFICIENTS.items()
    }
    # As far apart as the world's.
    wanted["camera"] = wanted["camera"] * np.array([0.6, 0.012, 0.012], "f") + CAMERA
    labels = {**CLASSES, "emotion": EMOTIONS}
    factors = {
        name: rng.integers(len(found), size=count).astype(np.int32)
        for name, found in labels.items()
    }
    return changed(batch, coefficients=wanted, factors=factors)


@pytest.fixture(scope="module")
def learnt():
    """The nets before; the metrics of each step and the state after."""
    nets = fresh_nets(TINY)
    return nets, *learn(TINY, nets, pictures(), steps=40, rate=1e-2)


def test_it_learns(learnt):
    nets, history, state = learnt
    assert history[0].keys() == {"loss", *TERMS, "accuracy", "gradient_norm", "ok"}
    assert not unmoved(nets, state)
    for term in TERMS:
        assert mean(history[-5:], term) < 0.9 * history[0][term], term
    assert mean(history[-5:], "accuracy") > history[0]["accuracy"] + 0.1


def test_the_loss_is_the_weighted_sum_of_its_terms(learnt):
    _, history, _ = learnt
    weights = (3, 5, 10, 100, 5, 2)
    summed = sum(w * history[0][term] for w, term in zip(weights, TERMS, strict=True))
    assert history[0]["loss"] == pytest.approx(summed, rel=1e-5)


def test_only_the_worlds_own_fields_count():
    """What the schema has beyond identity and expression is not looked at."""
    nets, batch = fresh_nets(TINY), pictures()
    loss = jax.jit(lambda nets, batch: TINY.loss(nets, {}, batch, jax.random.key(0), None)[0])
    beyond = {k: v.copy() for k, v in batch.coefficients.items()}
    beyond["shape"][:, len(IDENTITY) :] = 9
    beyond["expression"][:, len(EXPRESSION) :] = 9
    first = loss(nets, batch)
    assert loss(nets, changed(batch, coefficients=beyond)) == first
    beyond["shape"][:, len(IDENTITY) - 1] = 9
    assert loss(nets, changed(batch, coefficients=beyond)) > first + 1


def test_pictures_are_softened_as_much_as_half_the_size_cannot_hold():
    images = jnp.asarray(np.random.default_rng(0).random((64, 16, 16, 3), "f"))
    made = dataclasses.replace(TINY, softened=0.5)._changed(images, jax.random.key(0))
    moved = np.abs(made - images).max((1, 2, 3))
    assert 0.25 < (moved == 0).mean() < 0.75
    # Of a picture that is flat nothing is lost.
    flat = jnp.full((4, 16, 16, 3), 0.5)
    made = dataclasses.replace(TINY, softened=1.0)._changed(flat, jax.random.key(0))
    np.testing.assert_allclose(made, flat, atol=1e-6)


def test_noise_and_gain_are_within_their_bounds():
    flat = jnp.full((64, 16, 16, 3), 0.5)
    made = dataclasses.replace(TINY, gain=0.1)._changed(flat, jax.random.key(0))
    gains = np.asarray(made)[:, 0, 0, 0] / 0.5
    assert np.ptp(made, axis=(1, 2, 3)).max() == 0
    assert 0.9 <= gains.min() < 0.93
    assert 1.07 < gains.max() <= 1.1
    made = dataclasses.replace(TINY, noise=0.1)._changed(flat, jax.random.key(0))
    sigmas = np.std(made, axis=(1, 2, 3))
    assert sigmas.min() < 0.02
    assert 0.08 < sigmas.max() < 0.11
    white = dataclasses.replace(TINY, noise=0.1)._changed(flat + 0.5, jax.random.key(0))
    assert white.max() == 1  # a picture still


def test_wrong_settings_are_refused():
    told = (
        "objective: pose_weight=-1: expected 0 or more; noise=-1: expected 0 or more; "
        "softened=2: expected 0 to 1; gain=1: expected 0 or more, below 1"
    )
    with pytest.raises(UserError, match=told):
        Scorer(pose_weight=-1, softened=2, noise=-1, gain=1)
