"""`FaceMakeUp` on a small random model: what is told, off, kept and refused."""

import copy
import dataclasses
import types
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fmv2.drawing
import fmv2.loading
from convert.folder import write
from fmv2.conditions import NEUTRAL_LIGHT, draw_head
from fmv2.denoise import paint
from fmv2.drawing import Edit, _encode
from fmv2.errors import UserError
from fmv2.models.coefficient_encoder import Coefficients
from fmv2.nets import _program
from fmv2.pipeline import FaceMakeUp
from fmv2.settings import Settings
from tests.fmv2.model import SIZE, picture, small_model
from train.objectives.face_makeup import FaceMakeUp as Objective

FEW = {"steps": 2, "guidance_scale": 3.0}
"""With guidance, and so one program for most of these tests."""
NOTHING = {"id_scale": 0.0, "shading_scale": 0.0}


@pytest.fixture(scope="module")
def hand() -> FaceMakeUp:
    return FaceMakeUp(small_model())


@pytest.fixture(scope="module")
def faces(hand):
    return hand.prepare([picture(0), picture(1)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model"
    write(small_model(), out)
    return out


def far(one, other) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_a_face_becomes_conditions(hand, faces):
    one, other = faces
    assert one.shading.shape == (SIZE, SIZE, 3)
    assert (one.shading.max(-1) > 0).mean() > 0.1  # a head is to be seen
    assert ((one.landmarks > 0) & (one.landmarks < SIZE)).all()
    np.testing.assert_allclose(np.linalg.norm(one.identity), 1, rtol=1e-5)
    assert one.identity @ other.identity < 0.9999
    assert np.abs(one.coefficients.light - other.coefficients.light).max() > 1e-3
    alone = hand.prepare(picture(1))
    np.testing.assert_array_equal(alone.shading, other.shading)
    np.testing.assert_array_equal(alone.identity, other.identity)


def test_changes_are_drawn_but_the_face_is_seen_as_it_is(hand, faces):
    found = faces[0].coefficients
    made = hand.prepare(picture(0), pose=[0, 0.6, 0], light="neutral", expression="neutral")
    expected = found._replace(
        expression=np.zeros(50, np.float32),
        pose=np.float32([0, 0.6, 0, 0, 0, 0]),
        light=NEUTRAL_LIGHT,
    )
    batched = Coefficients(*(jnp.asarray(x)[None] for x in expected))
    shading, points = jax.jit(draw_head, static_argnums=2)(small_model().head, batched, SIZE)
    assert far(made.shading, np.asarray(shading[0])) <= 1
    np.testing.assert_allclose(made.landmarks, points[0], atol=1e-3)
    assert far(made.shading, faces[0].shading) > 20
    np.testing.assert_array_equal(made.face, faces[0].face)


def test_a_shading_image_replaces_the_rendered_one(hand):
    given = picture(5, SIZE, SIZE)
    made = hand.prepare(picture(0), given)
    np.testing.assert_array_equal(made.shading, given)
    # With landmarks too, neither head nor coefficient encoder is asked.
    blind = FaceMakeUp(dataclasses.replace(small_model(), head=None, coefficient_encoder=None))
    points = np.float32([[40, 30], [60, 30], [50, 42], [43, 55], [57, 55]])
    told = blind.prepare(picture(0), given, landmarks=points)
    assert far(told.face, made.face) > 5
    with pytest.raises(UserError) as refused:
        blind.prepare(picture(0))
    assert "no head" in str(refused.value)
    assert "no coefficient_encoder" in str(refused.value)
    assert "give shading_image and landmarks" in str(refused.value)


def test_the_face_is_cut_by_the_landmarks_of_its_head(hand, faces):
    """Those of the rendered head, given in the picture's own pixels, cut out the same face."""
    points = (faces[0].landmarks + 0.5) * 80 / SIZE - 0.5 + np.float32([10, 0])  # 80 x 100 pixels
    given = hand.prepare(picture(0), landmarks=points)
    assert far(given.face, faces[0].face) <= 1


def test_the_adapter_is_told_what_training_tells_it(hand, faces):
    """Tokens of the objective, of a batch with these faces: one dropped, one not."""
    seen = np.stack([face.face for face in faces])
    objective = Objective(identity="face_encoder")
    dropped = jnp.array([True, False])

    def told_in_training(face):
        batch: Any = types.SimpleNamespace(face=face, face_dropped=jnp.zeros(2, bool))
        return objective.id_tokens(hand.nets["adapter"], hand.nets, batch, dropped)

    expected = jax.jit(told_in_training)(jnp.asarray(seen))
    told = jax.jit(partial(fmv2.drawing._tokens, dict(hand.nets)))(
        jnp.stack([jnp.asarray(face.identity) for face in faces]),
        jnp.stack([jnp.asarray(face.features) for face in faces]),
        jnp.array([False, True]),
        jnp.float32(1),
    )
    np.testing.assert_allclose(told[0, 0], expected[0], atol=1e-5)
    np.testing.assert_allclose(told[1, 1], expected[1], atol=1e-5)
    assert np.abs(told[1, 1] - told[1, 0]).max() > 0.1


def test_every_knob_counts_and_none_compiles(hand, faces, monkeypatch):
    traces = []

    def denoiser(*given):
        traces.append(given)
        return original(*given)

    original = fmv2.drawing.denoiser
    monkeypatch.setattr(fmv2.drawing, "denoiser", denoiser)
    _program.cache_clear()  # models of one structure share programs, those of other tests too
    own = FaceMakeUp(small_model())
    plain = own.generate("a woman", faces[0], **FEW)
    assert plain.images.shape == (1, SIZE, SIZE, 3)
    for change in (
        {"guidance_scale": 6.0},
        {"id_scale": 1.5},
        {"s_scale": 1.7},
        {"shading_scale": 1.5},
        {"shading_guidance": True},
        {"seed": 1},
        {"steps": 3},
        {"sampler": "dpm++", "steps": 3},
        {"sampler": "euler-ancestral"},
        {"negative_prompt": "a man with a hat"},
    ):
        other = own.generate("a woman", faces[0], **{**FEW, **change})
        assert far(other.images, plain.images) > 1, change
    assert far(own.generate("a man", faces[0], **FEW).images, plain.images) > 1
    assert far(own.generate("a woman", faces[1], **FEW).images, plain.images) > 1
    assert len(traces) == 1


def test_nothing_is_left_of_what_is_off(hand, faces):
    """Bit for bit the model that never had an adapter or a ShadingNet."""
    base = FaceMakeUp(dataclasses.replace(small_model(), adapter=None, shadingnet=None))
    expected = base.generate("a woman", **FEW).images
    np.testing.assert_array_equal(hand.generate("a woman", **FEW).images, expected)
    off = hand.generate("a woman", faces[0], **FEW, **NOTHING).images
    np.testing.assert_array_equal(off, expected)
    assert far(hand.generate("a woman", faces[0], **FEW).images, expected) > 1


def test_without_an_identity_the_shading_is_still_obeyed(hand, faces):
    one, other = faces
    stranger = dataclasses.replace(one, identity=other.identity, features=other.features)
    other = dataclasses.replace(one, shading=255 - one.shading)
    drawn = [
        hand.generate("a woman", face, **FEW, id_scale=0.0, shading_scale=2.0).images
        for face in (one, stranger, other)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).mean() > 0.1
    # Nor is there anything left of the adapter in the U-Net, its LoRA neither.
    adapter = copy.deepcopy(small_model().adapter)
    for layer in adapter.layers:
        layer.to_q_lora.up.kernel[...] = 5 * layer.to_q_lora.up.kernel[...]
    changed = FaceMakeUp(dataclasses.replace(small_model(), adapter=adapter))
    off = {**FEW, "id_scale": 0.0, "shading_scale": 2.0}
    np.testing.assert_array_equal(changed.generate("a woman", one, **off).images, drawn[0])


def test_a_picture_of_a_seed_is_itself_in_any_company(hand, faces, monkeypatch):
    knobs = {**FEW, "sampler": "euler-ancestral", "steps": 3}
    many = hand.generate("a woman", faces[0], num_images=9, at_once=1, **knobs).images
    assert far(many[0], many[1]) > 1
    alone = hand.generate("a woman", faces[0], **knobs).images
    np.testing.assert_array_equal(alone[0], many[0])
    two = hand.generate(["a woman", "a woman"], [faces[0], faces[0]], **knobs).images
    np.testing.assert_array_equal(two, many[:2])
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    single = FaceMakeUp(small_model())
    apart = single.generate("a woman", faces[0], num_images=2, at_once=1, **knobs).images
    assert far(apart, many[:2]) <= 1  # sums in another order


def test_the_noise_may_be_given(hand, faces):
    shape = (2, SIZE // 8, SIZE // 8, 4)
    own = np.asarray(fmv2.drawing.initial_noise(3, 2, shape[1:]))
    given = hand.generate("a woman", faces[0], num_images=2, latents=own, **FEW).images
    seeded = hand.generate("a woman", faces[0], num_images=2, seed=3, **FEW).images
    np.testing.assert_array_equal(given, seeded)
    # What a sampler draws on its way is each picture's own all the same.
    alike, knobs = own[[0, 0]], {**FEW, "sampler": "euler-ancestral", "steps": 3}
    made = hand.generate("a woman", faces[0], num_images=2, latents=alike, **knobs).images
    assert far(made[0], made[1]) > 1
    with pytest.raises(UserError, match="latents are"):
        hand.generate("a woman", faces[0], latents=own, **FEW)


def test_lists_and_mixtures(hand, faces):
    one, other = faces
    both = hand.generate(["a woman", "a man"], list(faces), **FEW).images
    shared = hand.generate("a woman", list(faces), **FEW).images
    np.testing.assert_array_equal(both[0], shared[0])
    assert far(both[1], shared[1]) > 1
    mixed = hand.generate("a woman", [(one, 1.0), (other, 1.0)], **FEW).images
    alone = hand.generate("a woman", [(one, 1.0), (other, 0.0)], **FEW).images
    assert far(alone[0], both[0]) <= 1
    assert far(mixed[0], both[0]) > 1
    pairs = hand.generate(["a woman"] * 2, [[(one, 1.0), (other, 1.0)], other], **FEW).images
    np.testing.assert_array_equal(pairs[0], mixed[0])


def test_attention_and_progress(hand, faces):
    told = []
    text = "a woman with red hair"
    made = hand.generate(
        text,
        faces[0],
        attention=["red hair", "woman"],
        progress=lambda *given: told.append(given),
        **FEW,
    )
    assert told == [(1, 2), (2, 2)]
    (maps,) = made.attention
    assert list(maps) == ["red hair", "woman"]
    for seen in maps.values():
        assert seen.shape == (SIZE // 16, SIZE // 16)
        assert seen.max() == pytest.approx(1)
    assert np.abs(maps["red hair"] - maps["woman"]).max() > 1e-4
    with pytest.raises(UserError, match="'blue hat'"):
        hand.generate(text, faces[0], attention=["blue hat"], **FEW)


def test_an_edit_keeps_all_but_its_region(hand, faces):
    source = picture(7, SIZE, SIZE)
    mask = np.zeros((SIZE, SIZE))
    mask[16:40, 8:32] = 1
    mask[40:48, 8:32] = 0.5
    made = hand.edit(source, mask, "a woman", faces[0], num_images=2, **FEW).images
    assert made.shape == (2, SIZE, SIZE, 3)
    for image in made:
        np.testing.assert_array_equal(image[mask == 0], source[mask == 0])
        assert far(image[mask == 1], source[mask == 1]) > 20
    with pytest.raises(UserError, match=r"expected a square.*the mask is"):
        hand.edit(source[:, :40], mask, "a woman", faces[0])


def test_what_is_kept_is_kept_in_every_step(hand, faces):
    """Where nothing is free, what is drawn is the VAE's own likeness of the source."""
    source, settings = picture(7, SIZE, SIZE), Settings(**FEW)
    told = hand._tell("a woman", faces[0], "", 1, SIZE, (), settings)
    noise = hand._noise(told, None, settings)
    edit = Edit(source, np.zeros((SIZE, SIZE), np.float32))
    drawn, _ = hand._draw(told, settings, noise, 8, lambda *given: None, edit)
    vae = hand.nets["vae"]
    likeness = paint(vae, _encode({"vae": vae}, jnp.asarray(source)[None]))
    assert far(drawn, np.asarray(likeness)) <= 1


def test_what_the_region_borders_on_is_known_to_it(hand, faces):
    """Latents outside are the source's: what is drawn inside depends on them."""
    mask = np.zeros((SIZE, SIZE))
    mask[16:48, 16:48] = 1
    inside = [
        hand.edit(picture(seed, SIZE, SIZE), mask, "a woman", faces[0], **FEW).images[0][mask == 1]
        for seed in (7, 8)
    ]
    assert far(*inside) > 1


def test_a_long_prompt_is_told_where_it_ends(hand, faces):
    words = " ".join(["a woman with red hair"] * 100)
    with pytest.warns(UserWarning, match=r"\d{3} tokens, of which the first 75 are read") as told:
        hand.generate(words, faces[0], **FEW)
    assert len(told) == 1
    hand.generate("", faces[0], **FEW)


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        ({"steps": 0, "seed": -1}, ["steps=0", "seed=-1: expected a whole number from 0"]),
        ({"id_scale": 3.0, "s_scale": -0.1}, ["id_scale=3.0", "s_scale=-0.1"]),
        ({"shading_guidance": 1}, ["shading_guidance=1: expected True or False"]),
        ({"guidance_scale": float("nan")}, ["guidance_scale=nan"]),
        ({"sampler": "ddpm"}, ["sampler='ddpm': expected one of ddim"]),
        ({"steps": 1001}, ["steps=1001"]),
        ({"size": 60, "num_images": 0}, ["size=60: expected a multiple of 8, such as 64", "num"]),
        ({"size": 128}, ["prepare them with size=128"]),
    ],
)
def test_refusals(hand, faces, given, faults):
    with pytest.raises(UserError) as refused:
        hand.generate("a woman", faces[0], **given)
    for fault in faults:
        assert fault in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_model_lacks(faces):
    whole = small_model()
    with pytest.raises(UserError, match="lacks vae"):
        FaceMakeUp(dataclasses.replace(whole, vae=None))
    poor = FaceMakeUp(dataclasses.replace(whole, shadingnet=None, face_encoder=None))
    with pytest.raises(UserError, match=r"no shadingnet.*shading_scale=0"):
        poor.generate("a woman", faces[0])
    with pytest.raises(UserError, match="no such file") as refused:
        poor.prepare("absent.png", size=60, pose="sideways")
    for fault in ("size=60", "no face_encoder", "absent.png", "pose='sideways'"):
        assert fault in str(refused.value)


def test_a_folder_is_the_model(hand, folder):
    again = FaceMakeUp.from_pretrained(folder)
    assert again.digest == hand.digest
    half = FaceMakeUp.from_pretrained(folder, dtype="bfloat16").nets
    assert half["unet"].conv_in.kernel.dtype == jnp.bfloat16
    assert half["face_encoder"].conv1.kernel.dtype == jnp.float32
    assert (again.nets.precision, half.precision) == ("highest", None)


def test_a_model_from_the_hub(folder, monkeypatch):
    asked = []

    def snapshot_download(name, **options):
        asked.append(name)
        return str(folder)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fmv2.loading._folder("someone/some-model") == folder
    assert asked == ["someone/some-model"]


@pytest.mark.parametrize("name", ["absent", "absent/er/still", "someone/absent"])
def test_models_that_are_not_there(name):
    with pytest.raises(UserError, match="no such folder") as refused:
        FaceMakeUp.from_pretrained(name)
    assert "\n" not in str(refused.value)


def test_files_and_pillow_pictures(hand, faces, tmp_path):
    path = tmp_path / "face.png"
    image = Image.fromarray(picture(0))
    image.save(path)
    for source in (str(path), path, image):
        np.testing.assert_array_equal(hand.prepare(source).identity, faces[0].identity)
