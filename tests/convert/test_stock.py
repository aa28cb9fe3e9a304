"""Stock diffusers loads the export, and samples the same images from it as we do."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from convert.components import COMPONENTS
from fmv2.conditions import Conditions
from fmv2.inputs import face_features
from fmv2.pipeline import FaceMakeUp

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

ADAPTER = COMPONENTS["adapter"].file
PROMPTS = ["a woman smiling", "a man in the rain"]
NEGATIVE = "blurry"
STEPS, GUIDANCE, SCALE, S_SCALE, SHADING_SCALE = 10, 7.5, 0.7, 0.6, 0.5


@pytest.fixture
def stock(export):
    return StableDiffusionPipeline.from_pretrained(export, dtype=torch.float32)


def load_adapter(pipeline, folder):
    pipeline.load_ip_adapter(folder, "ip_adapter", ADAPTER, image_encoder_folder=None)
    return pipeline.unet.encoder_hid_proj.image_projection_layers[0]


def test_stable_diffusion_pipeline(stock, sources):
    base = StableDiffusionPipeline.from_pretrained(sources.base)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(stock, name).state_dict(), getattr(base, name).state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert stock.tokenizer(PROMPTS).input_ids == base.tokenizer(PROMPTS).input_ids
    assert isinstance(stock.scheduler, DDIMScheduler)
    assert stock.scheduler.config == base.scheduler.config
    assert stock.image_encoder is not None


def test_control_net_model(export, sources):
    net, info = ControlNetModel.from_pretrained(
        export, subfolder="shadingnet", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = torch.load(sources.model_bin, weights_only=True)["controlnet"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())


def test_load_ip_adapter(stock, export, model):
    projector = load_adapter(stock, export)
    rng = np.random.default_rng(0)
    id_embeds = rng.standard_normal((2, model.adapter.config.id_dim), np.float32)
    faces = rng.standard_normal((2, 5, model.adapter.config.face_dim), np.float32)
    ours = model.adapter.image_proj(jnp.asarray(id_embeds), jnp.asarray(faces))
    projector.clip_embeds = torch.from_numpy(faces)[:, None]
    with torch.no_grad():
        plus = projector(torch.from_numpy(id_embeds))
        projector.shortcut = True
        plus_v2 = projector(torch.from_numpy(id_embeds))
    np.testing.assert_allclose(ours, plus_v2, atol=1e-5)
    assert np.abs(ours - plus.numpy()).max() > 0.1  # what the card warns of


def lora_of(unet):
    return {
        name: tensor
        for name, tensor in unet.state_dict().items()
        if ".lora_A." in name or ".lora_B." in name
    }


def test_load_lora_weights(export, sources):
    """The LoRA file does what the adapter's LoRA does."""
    alone, whole = (StableDiffusionPipeline.from_pretrained(export) for _ in range(2))
    alone.load_lora_weights(export, adapter_name="faceid_0")
    load_adapter(whole, export)
    assert len(lora_of(alone.unet)) == 256
    theirs = lora_of(whole.unet)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in lora_of(alone.unet).items())
    assert alone.unet.peft_config["faceid_0"].lora_alpha == alone.unet.peft_config["faceid_0"].r


def black_nothing(model):
    """What the image encoder makes of pixels that are all zero."""
    nobody = jnp.zeros((1, 1, 1, 3), jnp.uint8)
    return face_features(model.image_encoder, nobody, jnp.ones(1, bool))


@pytest.fixture(scope="module")
def conditions(model):
    rng = np.random.default_rng(1)
    id_embeds = rng.standard_normal((2, model.adapter.config.id_dim), np.float32)
    encoder = model.image_encoder.config
    return {
        "id_embeds": id_embeds / np.linalg.norm(id_embeds, axis=-1, keepdims=True),
        "faces": rng.standard_normal((2, encoder.tokens, encoder.hidden_size), np.float32),
        "negative_faces": np.array(black_nothing(model)),
        "shading": rng.integers(0, 256, (2, 64, 64, 3)).astype(np.float32) / 255,
        "latents": rng.standard_normal((2, 8, 8, 4), np.float32),
    }


def own_pipeline(export):
    folder = str(export)
    return DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)


def in_torch(export, conditions, **changes):
    given = {name: torch.from_numpy(array) for name, array in conditions.items()}
    for name in ("shading", "latents"):
        given[name] = given[name].permute(0, 3, 1, 2)
    settings = {
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "scale": SCALE,
        "s_scale": S_SCALE,
        "shading_scale": SHADING_SCALE,
        "output_type": "np",
    }
    return own_pipeline(export)(PROMPTS, **(settings | given | changes)).images


def in_jax(model, conditions, **changes):
    """Ours, before it is rounded to bytes; the negative faces must be those of black nothing."""
    hand = FaceMakeUp(model)

    def unrounded(nets, latents):
        return nets["vae"].decode(nets["vae"].config.unscale(latents)) / 2 + 0.5

    hand._draw._paint = hand.nets.jit(unrounded, "vae")
    faces = [
        Conditions(
            identity=identity, features=features, shading=np.round(255 * shading).astype(np.uint8)
        )
        for identity, features, shading in zip(
            conditions["id_embeds"], conditions["faces"], conditions["shading"], strict=True
        )
    ]
    images = hand.generate(
        PROMPTS,
        faces,
        negative_prompt=NEGATIVE,
        latents=conditions["latents"],
        steps=STEPS,
        guidance_scale=GUIDANCE,
        id_scale=SCALE,
        s_scale=S_SCALE,
        shading_scale=SHADING_SCALE,
        **changes,
    ).images
    return images.clip(0, 1)


@pytest.mark.parametrize("shading_guidance", [False, True])
def test_sampling_run_equals_ours(export, model, conditions, shading_guidance):
    theirs = in_torch(export, conditions, shading_guidance=shading_guidance)
    ours = in_jax(model, conditions, shading_guidance=shading_guidance)
    assert theirs.shape == ours.shape == (2, 64, 64, 3)
    assert theirs.std() > 0.05  # a picture, not a saturated plane
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"s_scale": 0.0},
        {"shading_scale": 0.0},
        {"shading_guidance": True},
        {"guidance_scale": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_condition_counts_in_the_own_pipeline(export, conditions, change):
    """Else equal images would prove little."""
    few = {"num_inference_steps": 2}
    plain = in_torch(export, conditions, **few)
    assert np.abs(in_torch(export, conditions, **few, **change) - plain).max() > 2 / 255


def test_own_pipeline_encodes_face_images(export, conditions):
    """Images of the faces stand for the hidden states of the folder's own encoder."""
    faces = [Image.fromarray(np.full((40, 40, 3), shade, np.uint8)) for shade in (60, 200)]
    pipeline = own_pipeline(export)
    given = {
        name: torch.from_numpy(conditions[name]) for name in ("id_embeds", "shading", "latents")
    }
    given |= {name: given[name].permute(0, 3, 1, 2) for name in ("shading", "latents")}
    settings = {"num_inference_steps": 2, "output_type": "np"}
    images = pipeline(PROMPTS, faces=faces, **given, **settings).images

    pixels = pipeline.feature_extractor(faces, return_tensors="pt").pixel_values
    with torch.no_grad():
        states, zeros = (
            pipeline.image_encoder(x, output_hidden_states=True).hidden_states[-2]
            for x in (pixels, torch.zeros_like(pixels[:1]))
        )
    again = pipeline(PROMPTS, faces=states, negative_faces=zeros, **given, **settings).images
    np.testing.assert_allclose(images, again, atol=1e-5)
    with pytest.raises(ValueError, match="needs negative_faces"):
        pipeline(PROMPTS, faces=states, **given, **settings)


def test_own_pipeline_keeps_the_folder_stock(export):
    """The class that model_index.json names is diffusers' own."""
    pipeline = own_pipeline(export)
    assert type(pipeline).__name__ == "FaceMakeUpPipeline"
    assert type(DiffusionPipeline.from_pretrained(export)) is StableDiffusionPipeline
    assert load_file(export / "ip_adapter" / ADAPTER).keys()
