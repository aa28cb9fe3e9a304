"""The text-to-image objective: its loss step by step, and that the U-Net learns."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from fmv2.errors import UserError
from fmv2.inputs import image_input
from fmv2.models.clip_text import CLIPTextConfig, CLIPTextModel
from fmv2.models.unet import UNetConfig
from fmv2.models.vae import AutoencoderKL, AutoencoderKLConfig
from tests.train.batches import changed, face_batch
from tests.train.objectives.learning import SCHEDULE, fresh_nets, learn, mean, unmoved
from tests.train.small import IMAGE_SIZE, small_configs
from train.objectives.text_to_image import TextToImage

TINY = TextToImage(
    unet=UNetConfig(
        block_out_channels=(16,),
        cross_attention=(True,),
        num_heads=(2,),
        cross_attention_dim=8,
        norm_num_groups=4,
        layers_per_block=1,
    ),
)
TEXT = dataclasses.replace(CLIPTextConfig.tiny(), num_hidden_layers=1, max_position_embeddings=77)
VAE = dataclasses.replace(AutoencoderKLConfig.tiny(), block_out_channels=(8,))


@pytest.fixture(scope="module")
def given():
    batch, _ = face_batch(4, size=16)
    frozen = {
        "vae": AutoencoderKL(VAE, rngs=nnx.Rngs(9)),
        "text_encoder": CLIPTextModel(TEXT, rngs=nnx.Rngs(8)),
    }
    return fresh_nets(TINY, {"text_encoder": TEXT}), frozen, batch


def test_it_learns(given):
    nets, frozen, batch = given
    history, state = learn(TINY, nets, batch, frozen)
    assert history[0].keys() == {"loss", "noise", "gradient_norm", "ok"}
    assert not unmoved(nets, state)
    assert mean(history[-5:]) < 0.9 * mean(history[:3])


def test_it_learns_to_look_at_its_words():
    configs = small_configs()
    objective = TextToImage(unet=configs["unet"], map_weight=0.5)
    batch, _ = face_batch(4, size=IMAGE_SIZE)
    made = {
        "vae": AutoencoderKL(configs["vae"], rngs=nnx.Rngs(9)),
        "text_encoder": CLIPTextModel(configs["text_encoder"], rngs=nnx.Rngs(8)),
    }
    history, _ = learn(objective, fresh_nets(objective, configs), batch, made)
    first = history[0]
    assert first["loss"] == pytest.approx(first["noise"] + 0.5 * first["map"])
    assert mean(history[-5:], "map") < 0.8 * mean(history[:3], "map")


def test_it_is_the_error_of_the_noise(given):
    nets, frozen, batch = given
    key = jax.random.key(3)
    loss, _ = jax.jit(lambda nets, frozen: TINY.loss(nets, frozen, batch, key, SCHEDULE))(
        nets, frozen
    )
    of_latents, of_noise, of_times = jax.random.split(key, 3)
    timesteps = np.asarray(jax.random.randint(of_times, (4,), 0, 1000))

    @jax.jit
    def expected(nets, frozen):
        vae = frozen["vae"]
        mean, logvar = vae.encode(image_input(batch.image))
        noise = jax.random.normal(of_noise, mean.shape)
        x0 = mean + jax.numpy.exp(logvar / 2) * jax.random.normal(of_latents, mean.shape)
        alpha = SCHEDULE.alphas_cumprod[timesteps][:, None, None, None]
        noisy = np.sqrt(alpha) * 0.18215 * x0 + np.sqrt(1 - alpha) * noise
        context = frozen["text_encoder"](batch.input_ids).last_hidden_state
        return ((nets["unet"](noisy, timesteps, context).noise - noise) ** 2).mean()

    np.testing.assert_allclose(loss, expected(nets, frozen), rtol=1e-5)


def test_latents_of_the_record_need_no_picture(given):
    nets, frozen, batch = given
    moments = np.random.default_rng(0).normal(size=(4, 1, 1, 8)).astype(np.float16)
    objective = dataclasses.replace(TINY, latents="record")
    assert objective.extras == ("latent_moments",)
    loss = jax.jit(
        lambda batch: objective.loss(nets, frozen, batch, jax.random.key(0), SCHEDULE)[0]
    )
    known = changed(batch, latent_moments=moments)
    assert loss(known) == loss(changed(known, image=np.zeros_like(batch.image)))
    assert loss(known) != loss(changed(known, latent_moments=moments[::-1]))


def test_the_unet_fits_the_text_encoder_that_is_there():
    wide = dataclasses.replace(TEXT, hidden_size=64)
    assert TINY.fresh({"text_encoder": wide})["unet"].cross_attention_dim == 64
    assert not TINY.fresh({})


def test_wrong_settings_are_refused():
    with pytest.raises(
        UserError, match=r"map_weight=-1: .*; min_snr_gamma=0: expected more than 0"
    ):
        TextToImage(min_snr_gamma=0, map_weight=-1)
