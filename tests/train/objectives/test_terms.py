"""The whole objective on small nets: gradients by finite differences, and what may be missing."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.face.align import TEMPLATE
from fmv2.models.unet import UNetOutput
from fmv2.models.vae import AutoencoderKL, Moments
from tests.train.batches import changed, face_batch, random_net
from tests.train.small import IMAGE_SIZE, small_configs
from train.objectives.diffusion import Chance, scaled_latents
from train.objectives.face_makeup import FaceMakeUp
from train.step import split

OBJECTIVE = FaceMakeUp(
    map_weight=0.5, spread_weight=0.125, id_weight=0.25, id_every=2, id_bound=500, rank=4
)
SCHEDULE = NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TERMS = ("noise", "map", "spread", "id")


def configs(embedding=512):
    found = small_configs()
    face = dataclasses.replace(found["face_encoder"], embedding_size=embedding)
    found = {**found, "face_encoder": face}
    return {**found, **OBJECTIVE.fresh(found)}


def given():
    """A batch whose samples 0 and 2 are decoded, their faces partly beyond the picture."""
    batch, _ = face_batch(size=IMAGE_SIZE, face=16)
    face = (TEMPLATE + 0.5) * 0.5 - 0.5 + np.float32([[14, -6]])
    shape = (4, IMAGE_SIZE // 8, IMAGE_SIZE // 8, 4)
    latents, noise = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    # Late steps below the bound: there the estimated image hangs most on what was predicted.
    chance = Chance(jnp.asarray(latents), jnp.asarray(noise), jnp.array([490, 981, 400, 30]))
    return changed(batch, landmarks=np.stack([face, face, face[:, ::-1] + 1, face])), chance


@pytest.fixture(scope="module")
def evaluate():
    """Of a batch and its chance: the loss, its terms, and the gradient of a mixture of them."""
    nets = {name: random_net(name, config, i) for i, (name, config) in enumerate(configs().items())}
    graph, params, stats = split({name: nets.pop(name) for name in OBJECTIVE.trained})

    @jax.jit
    def run(params, batch, chance, mixture):
        def one(params):
            trained = nnx.merge(graph, params, stats)
            loss, terms = OBJECTIVE.loss_at(trained, nets, batch, chance, SCHEDULE)
            return mixture @ jnp.stack([terms[name] for name in TERMS]), (loss, terms)

        (_, (loss, terms)), gradient = jax.value_and_grad(one, has_aux=True)(params)
        return loss, {name: terms[name] for name in terms}, gradient

    def call(batch, chance, mixture=(1.0, 0.5, 0.125, 0.25), params=params):
        return run(params, batch, chance, jnp.asarray(mixture, jnp.float32))

    return call, params


def test_the_loss_is_the_weighted_sum_of_its_terms(evaluate):
    call, _ = evaluate
    loss, terms, gradient = call(*given())
    assert set(terms) == {"loss", "id_cosine", *TERMS}
    assert terms["loss"] == loss
    assert loss == pytest.approx(
        float(terms["noise"] + 0.5 * terms["map"] + 0.125 * terms["spread"] + 0.25 * terms["id"]),
        rel=1e-6,
    )
    for name in TERMS:
        assert terms[name] > 0.1
    assert all(jnp.any(x) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("term", "h", "tolerance"),
    [
        ("noise", 3e-4, 5e-3),
        ("map", 3e-3, 5e-3),
        ("spread", 3e-3, 5e-3),
        ("id", 3e-3, 2e-2),
    ],
)
def test_the_gradient_of_each_term_equals_finite_differences(evaluate, term, h, tolerance):
    """Of float32, whose rounding is all that the tolerance is for."""
    call, params = evaluate
    mixture = np.eye(len(TERMS))[TERMS.index(term)]
    _, _, gradient = call(*given(), mixture)
    rng = np.random.default_rng(0)

    def random_way(x, g):
        """In half of the tensors, at random along the gradient: across it hardly a term moves."""
        size = np.sqrt(np.mean(np.square(x)) / np.maximum(np.mean(np.square(g)), 1e-30))
        return np.float32(rng.integers(2) * size) * rng.uniform(0, 2, x.shape) * np.array(g)

    for _ in range(2):
        way = jax.tree.map(random_way, params, gradient)

        def at(distance, way=way):
            moved = jax.tree.map(lambda x, w: (x + distance * w).astype(x.dtype), params, way)
            return float(call(*given(), mixture, moved)[1][term])

        # Of fourth order, by Richardson: the steps are long, so that rounding stays below.
        coarse, fine = ((at(d) - at(-d)) / (2 * d) for d in (h, h / 2))
        slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, way)))
        assert (4 * fine - coarse) / 3 == pytest.approx(slope, rel=tolerance)


def test_no_identity_no_term(evaluate):
    """Neither landmarks that are unknown nor an identity that is dropped, and no NaN of either."""
    call, _ = evaluate
    batch, chance = given()
    landmarks = batch.landmarks.copy()
    landmarks[0, 2] = np.nan
    batch = changed(batch, landmarks=landmarks, id_dropped=np.arange(4) == 2)
    loss, terms, gradient = call(batch, chance)
    assert terms["id"] == terms["id_cosine"] == 0
    assert jnp.isfinite(loss)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))
    _, _, of_term = call(batch, chance, np.eye(len(TERMS))[TERMS.index("id")])
    assert not any(jnp.any(x) for x in jax.tree.leaves(of_term))


def test_what_is_left_out_does_not_dilute(evaluate):
    call, _ = evaluate
    batch, chance = given()
    unknown = batch.landmarks.copy()
    unknown[0] = np.nan
    alone = call(changed(batch, landmarks=unknown), chance)[1]
    dropped = call(changed(batch, id_dropped=np.arange(4) == 0), chance)[1]
    both = call(batch, chance)[1]
    assert dropped["id"] == pytest.approx(float(alone["id"]), rel=1e-5)
    assert abs(alone["id"] - both["id"]) > 1e-3


def test_what_is_dropped_is_not_seen(evaluate):
    call, _ = evaluate
    batch, chance = given()
    last = np.arange(4) == 3
    face, face_id = batch.face.copy(), batch.face_id.copy()
    face[3], face_id[3] = 255 - face[3], -face_id[3]

    def noise(**fields):
        return float(call(changed(batch, **fields), chance)[1]["noise"])

    assert noise(face=face) != noise()
    assert noise(face_dropped=last, face=face) == noise(face_dropped=last)
    assert noise(face_dropped=last, face_id=face_id) != noise(face_dropped=last)
    assert noise(id_dropped=last, face=face, face_id=face_id) == noise(id_dropped=last)
    assert noise(id_dropped=last) != noise(face_dropped=last)


def test_beyond_the_picture_the_face_is_black():
    """With nets that only hand on: every estimated image is black, and so are the faces."""
    batch, chance = given()
    seen = []

    def face_encoder(images):
        seen.append(images)
        return jnp.ones((len(images), 512))

    face_encoder.config = configs()["face_encoder"]
    latents = jnp.zeros_like(chance.noise)
    frozen = {
        "vae": SimpleNamespace(
            config=configs()["vae"],
            encode=lambda images: Moments(latents, latents),
            decode=lambda z: jnp.full((len(z), IMAGE_SIZE, IMAGE_SIZE, 3), -1.0),
        ),
        "face_encoder": face_encoder,
        "image_encoder": SimpleNamespace(
            config=configs()["image_encoder"], hidden_state=lambda pixels, index: pixels
        ),
        "text_encoder": lambda ids: SimpleNamespace(last_hidden_state=ids),
        "unet": lambda *_, **__: UNetOutput(latents, {}),
    }
    trained = {
        "adapter": SimpleNamespace(
            config=configs()["adapter"], image_proj=lambda identity, features: identity
        ),
        "shadingnet": lambda *_: None,
    }
    objective = dataclasses.replace(OBJECTIVE, map_loss="none", spread_weight=0)
    objective.loss_at(trained, frozen, batch, chance, SCHEDULE)
    assert seen[0].shape == (2, 32, 32, 3)
    np.testing.assert_allclose(seen[0], -1, atol=1e-6)


def test_moments_of_records_stand_for_the_encoder():
    vae = random_net("vae", configs()["vae"], 0)
    assert isinstance(vae, AutoencoderKL)
    batch, chance = given()
    expected = jax.jit(scaled_latents, static_argnums=3)(vae, batch, chance.latents, "vae")
    moments = jax.jit(AutoencoderKL.encode)(vae, batch.image / np.float32(127.5) - 1)
    stored = changed(batch, latent_moments=np.concatenate(moments, -1).astype(np.float16))
    actual = scaled_latents(vae, stored, chance.latents, "record")
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-3)
    assert FaceMakeUp(latents="record").extras == ("latent_moments",)
    assert FaceMakeUp().extras == ()


def test_only_the_nets_and_masks_that_a_term_needs():
    no_terms = FaceMakeUp(map_loss="none", id_weight=0)
    assert "face_encoder" in FaceMakeUp().frozen
    assert "face_encoder" not in no_terms.frozen
    assert "face_encoder" in dataclasses.replace(no_terms, identity="face_encoder").frozen
    assert FaceMakeUp().grids(512) == (32,)
    assert no_terms.grids(512) == FaceMakeUp(map_weight=0).grids(512) == ()
    assert dataclasses.replace(no_terms, spread_weight=1e-3).grids(512) == (32,)


def test_chance_follows_its_key():
    batch, _ = given()
    frozen = {"vae": SimpleNamespace(config=configs()["vae"])}
    first, again, other = (
        OBJECTIVE.draw(frozen, batch, jax.random.key(n), SCHEDULE) for n in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first.latents.shape == first.noise.shape == (4, 8, 8, 4)
    assert not np.array_equal(first.latents, first.noise)
    for a, b in zip(first, other, strict=True):
        assert not np.array_equal(a, b)
    assert (first.timesteps[::2] < 500).all()


def test_what_begins_afresh_fits_the_base():
    fresh = configs(embedding=16)
    assert fresh["adapter"].rank == 4
    assert fresh["adapter"].face_dim == fresh["image_encoder"].hidden_size
    assert fresh["adapter"].id_dim == 512
    assert fresh["shadingnet"].block_out_channels == fresh["unet"].block_out_channels
    seeing = dataclasses.replace(OBJECTIVE, identity="face_encoder").fresh(fresh)
    assert seeing["adapter"].id_dim == 16
    assert OBJECTIVE.fresh({}) == {}


def test_an_adapter_for_another_identity_is_refused():
    batch, _ = given()
    frozen = {"image_encoder": SimpleNamespace(config=configs()["image_encoder"])}
    adapter = SimpleNamespace(config=dataclasses.replace(configs()["adapter"], id_dim=16))
    with pytest.raises(UserError, match=r"identity=record gives 512 numbers, .* takes 16"):
        OBJECTIVE.id_tokens(adapter, frozen, batch, batch.id_dropped)


def test_settings_that_cannot_work_are_refused_at_once():
    with pytest.raises(UserError) as error:
        FaceMakeUp(map_weight=-1, id_weight=-1, id_every=0, id_bound=0, rank=0, min_snr_gamma=0)
    for fault in (
        "objective: map_weight=-1: expected 0 or more; id_weight=-1: expected 0 or more",
        "id_every=0: expected 1 or more; id_bound=0: expected 1 or more; rank=0: expected 1",
        "min_snr_gamma=0: expected more than 0",
    ):
        assert fault in str(error.value)
