"""The contrastive objective: its loss against float64, on one device and on eight; it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmv2.models.clip_text import CLIPTextConfig
from fmv2.models.clip_vision import CLIPVisionConfig
from fmv2.parallel import MeshConfig, batch_sharding, make_mesh
from tests.train.batches import changed, face_batch
from tests.train.objectives.learning import fresh_nets, learn, mean, unmoved
from train.objectives.contrastive import Contrastive, info_nce

TINY = Contrastive(
    text_encoder=dataclasses.replace(
        CLIPTextConfig.tiny(), num_hidden_layers=1, max_position_embeddings=77
    ),
    image_encoder=dataclasses.replace(CLIPVisionConfig.tiny(), num_hidden_layers=2),
)


def captioned(count=8):
    batch, _ = face_batch(count, size=32, face=32)
    return changed(batch, text_dropped=np.zeros(count, bool))


def test_it_learns():
    nets, batch = fresh_nets(TINY), captioned()
    history, state = learn(TINY, nets, batch)
    assert history[0].keys() == {
        "loss", "picture", "picture_accuracy", "face", "face_accuracy", "scale",
        "gradient_norm", "ok",
    }  # fmt: skip
    assert not unmoved(nets, state)
    first = history[0]
    assert first["loss"] == pytest.approx((first["picture"] + first["face"]) / 2, rel=1e-5)
    assert first["scale"] == pytest.approx(1 / 0.07, rel=1e-5)
    for view in ("picture", "face"):
        assert mean(history[-5:], view) < 0.5 * first[view]
        assert mean(history[-5:], f"{view}_accuracy") > 0.8


def reference(texts, images, scale, alike):
    """In float64, one pair at a time."""
    texts, images = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (texts, images))
    total, count = 0.0, len(texts)
    for i in range(count):
        for one, others in ((texts[i], images), (images[i], texts)):
            among = [j for j in range(count) if j == i or not alike[i, j]]
            logits = np.array([scale * one @ others[j] for j in among])
            total += np.log(np.exp(logits).sum()) - logits[among.index(i)]
    return total / (2 * count)


@pytest.mark.parametrize("devices", [1, 8])
def test_info_nce(devices):
    """Over all devices' samples: a device's own would give another loss."""
    rng = np.random.default_rng(0)
    texts, images = rng.normal(size=(2, 16, 5))
    kind = rng.integers(0, 6, 16)
    alike = kind[:, None] == kind[None]
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    placed = [
        jax.device_put(np.asarray(x, "f"), batch_sharding(mesh)) for x in (texts, images, alike)
    ]
    loss, _ = jax.jit(lambda t, i, a: info_nce(t, i, jnp.float32(9.0), a > 0))(*placed)
    np.testing.assert_allclose(loss, reference(texts, images, 9.0, alike), rtol=1e-5)
    apart = [reference(*(x[i : i + 2] for x in (texts, images)), 9.0, np.eye(2)) for i in (0, 2)]
    assert abs(np.mean(apart) - float(loss)) > 0.1


def test_nearest_partner_is_counted():
    texts = jnp.eye(4)
    images = texts[jnp.array([0, 1, 3, 2])] + texts / 2
    no = jnp.zeros((4, 4), bool)
    assert info_nce(texts, images, jnp.float32(1), no)[1] == 0.5
    assert info_nce(texts, texts, jnp.float32(1), no)[1] == 1
    # Samples 2 and 3 have the same caption: neither is the other's wrong answer.
    alike = no.at[2, 3].set(True).at[3, 2].set(True)
    assert info_nce(texts, images, jnp.float32(1), alike)[1] == 1


def test_the_temperature_is_bounded():
    head = fresh_nets(TINY)["contrast_head"]
    head.log_scale[...] = jnp.float32(9.0)
    assert head.scale == pytest.approx(100, rel=1e-5)
