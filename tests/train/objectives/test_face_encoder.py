"""The face encoder's objective: the margin against NumPy, and that people are told apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmv2.errors import UserError
from fmv2.models.arcface import ArcFaceConfig
from tests.train.batches import changed, face_batch
from tests.train.objectives.learning import fresh_nets, learn, mean, unmoved
from train.objectives.face_encoder import FaceEncoder, margin_loss

TINY = FaceEncoder(
    identities=6,
    face_encoder=dataclasses.replace(
        ArcFaceConfig.tiny(), layers=(1, 1, 1, 1), widths=(4, 6, 8, 8), image_size=16
    ),
    scale=16.0,
    margin=0.2,
)


def people(*numbers):
    """A batch of these people's faces."""
    batch, _ = face_batch(len(numbers), size=16, face=16)
    identity = np.array(numbers, np.int32)
    faces = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    return changed(batch, face=faces[identity % 6], factors={"identity": identity})


def test_it_learns_and_keeps_statistics():
    nets = fresh_nets(TINY)
    before = np.asarray(nets["face_encoder"].bn2.mean[...])
    history, state = learn(TINY, nets, people(0, 1, 2, 3, 0, 1, 2, 3), rate=1e-2)
    assert history[0].keys() == {
        "loss", "margin", "accuracy", "unknown", "gradient_norm", "ok",
    }  # fmt: skip
    assert not unmoved(nets, state)
    assert mean(history[-5:]) < 0.5 * history[0]["loss"]
    assert mean(history[-5:], "accuracy") > 0.9
    assert not np.allclose(state.stats["face_encoder"]["bn2"]["mean"][...], before)


def test_a_person_beyond_the_number_makes_the_loss_nan():
    """The step then changes nothing, and the run stops."""
    nets, batch = fresh_nets(TINY), people(0, 1, 2, 6)
    loss = jax.jit(lambda nets: TINY.loss(nets, {}, batch, jax.random.key(0), None))
    value, metrics = loss(nets)
    assert np.isnan(value)
    assert metrics["unknown"] == 0.25


def test_the_margin_is_that_of_the_paper():
    """In float64 with angles written out; person 3's is so far that θ + m passes π."""
    rng, scale, margin = np.random.default_rng(0), 30.0, 0.4
    cosines = rng.uniform(-0.9, 0.9, (5, 7))
    person = np.array([0, 6, 2, 3, 3])
    cosines[3, 3] = -0.99
    logits = cosines.copy()
    for row, column in enumerate(person):
        angle = np.arccos(cosines[row, column])
        logits[row, column] = (
            np.cos(angle + margin)
            if angle + margin < np.pi
            else cosines[row, column] - margin * np.sin(margin)
        )
    logits *= scale
    chosen = logits[np.arange(5), person]
    expected = (np.log(np.exp(logits).sum(1)) - chosen).mean()
    actual = margin_loss(jnp.asarray(cosines, jnp.float32), jnp.asarray(person), scale, margin)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_the_margin_is_smooth_where_embedding_and_centre_agree():
    gradient = jax.grad(lambda x: margin_loss(x, jnp.array([0, 1]), 64.0, 0.5))
    assert np.isfinite(gradient(jnp.eye(2, 4))).all()
    assert np.isfinite(gradient(-jnp.eye(2, 4))).all()


def test_centres_are_as_wide_as_the_encoder_that_is_there():
    wide = dataclasses.replace(TINY.face_encoder, embedding_size=33)
    assert TINY.fresh({"face_encoder": wide})["class_centers"].embedding_size == 33
    assert TINY.fresh({})["class_centers"].classes == 6


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match=r"identities=1, scale=0, margin=2"):
        FaceEncoder(identities=1, scale=0, margin=2)
