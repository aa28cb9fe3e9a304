"""The autoencoder's objective: its terms against NumPy and torch, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fmv2.errors import UserError
from fmv2.models.vae import AutoencoderKLConfig, Moments
from tests.train.batches import changed, face_batch
from tests.train.objectives.learning import fresh_nets, learn, mean, unmoved
from train.objectives.vae import VAE, edge_loss, kl, scale_loss

SHAPE = dataclasses.replace(
    AutoencoderKLConfig.tiny(), block_out_channels=(8, 16), scaling_factor=1.0
)
TINY = VAE(vae=SHAPE, scale_weight=1.0)


def smooth_batch():
    """Pictures of flat squares."""
    batch, _ = face_batch(4, size=16)
    squares = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), np.uint8)
    return changed(batch, image=squares.repeat(8, axis=1).repeat(8, axis=2))


def test_it_learns_and_its_latents_come_to_unit_variance():
    nets = fresh_nets(TINY)
    history, state = learn(TINY, nets, smooth_batch(), steps=30, rate=1e-2)
    assert history[0].keys() == {
        "loss", "pixels", "edges", "kl", "scale", "latent_std", "gradient_norm", "ok",
    }  # fmt: skip
    assert not unmoved(nets, state)
    assert mean(history[-5:], "pixels") < 0.75 * history[0]["pixels"]
    assert max(metrics["scale"] for metrics in history) > 0.04  # it leaves the bound first
    assert mean(history[-5:], "scale") < 0.02
    assert mean(history[-5:], "latent_std") == pytest.approx(1, abs=0.1)
    first = history[0]
    weighted = first["pixels"] + first["edges"] + 1e-4 * first["kl"] + first["scale"]
    assert first["loss"] == pytest.approx(weighted, rel=1e-5)


def test_edges():
    images, decoded = np.random.default_rng(0).normal(size=(2, 2, 5, 6, 3)).astype(np.float32)
    error = decoded - images
    expected = np.abs(error[:, 1:] - error[:, :-1]).mean()
    expected += np.abs(error[:, :, 1:] - error[:, :, :-1]).mean()
    assert edge_loss(jnp.asarray(decoded), jnp.asarray(images)) == pytest.approx(expected, rel=1e-5)
    assert edge_loss(jnp.asarray(images) + 1, jnp.asarray(images)) == pytest.approx(0, abs=1e-6)


def test_kl_equals_torch():
    mean, logvar = np.random.default_rng(0).normal(size=(2, 2, 3, 3, 4)).astype(np.float32)
    config = dataclasses.replace(TINY.vae, scaling_factor=0.3)
    scaled = torch.distributions.Normal(
        0.3 * torch.tensor(mean), 0.3 * torch.exp(0.5 * torch.tensor(logvar))
    )
    expected = torch.distributions.kl_divergence(scaled, torch.distributions.Normal(0, 1)).mean()
    found = kl(Moments(jnp.asarray(mean), jnp.asarray(logvar)), config)
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_scale_is_zero_for_standard_channels_alone():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    assert scale_loss(jnp.asarray(x)) == pytest.approx(0, abs=1e-5)
    # One channel of four: ½ (m² + v - 1 - ln v).
    x[..., 1] = 3 * x[..., 1] + 2
    expected = 0.5 * (4 + 9 - 1 - np.log(9)) / 4
    assert scale_loss(jnp.asarray(x)) == pytest.approx(expected, rel=1e-4)


def test_a_net_of_another_scale_keeps_it():
    """The terms are of scaled latents, so that a base's `scaling_factor` stays right."""
    nets, batch = fresh_nets(TINY), smooth_batch()

    def metrics(nets):
        return jax.jit(lambda nets: TINY.loss(nets, {}, batch, jax.random.key(0), None)[1])(nets)

    plain = metrics(nets)
    nets["vae"].config = dataclasses.replace(SHAPE, scaling_factor=0.25)
    scaled = metrics(nets)
    np.testing.assert_allclose(scaled["latent_std"], 0.25 * plain["latent_std"], rtol=1e-5)
    np.testing.assert_allclose(scaled["pixels"], plain["pixels"], rtol=1e-5)


def test_wrong_weights_are_refused():
    with pytest.raises(UserError, match=r"edge_weight=-1, kl_weight=-2: expected 0 or more"):
        VAE(edge_weight=-1, kl_weight=-2)
