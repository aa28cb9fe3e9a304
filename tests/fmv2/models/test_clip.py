"""CLIP's towers against transformers' on random weights, whole and block by block."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.torch import save_file

from convert.engine import dump, load, torch_shapes
from convert.tables.clip import CLIP_TEXT, CLIP_TEXT_WITH_PROJECTION, CLIP_VISION
from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.clip_text import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from fmv2.models.clip_vision import CLIPVisionConfig, CLIPVisionModelWithProjection
from tests.parity import randomize_, refs, relative_error, to_nchw, to_nhwc

TEXT, VISION = CLIPTextConfig.tiny(), CLIPVisionConfig.tiny()
# With tokens above the end token, as textual inversion adds them.
SD2_TEXT = dataclasses.replace(
    TEXT, hidden_act="gelu", hidden_size=48, num_attention_heads=3, eos_token_id=90
)
ODD_VISION = dataclasses.replace(
    VISION, hidden_act="gelu", image_size=30, num_channels=4, layer_norm_eps=1e-3
)

NETS = {
    CLIPTextModel: (transformers.CLIPTextModel, CLIP_TEXT),
    CLIPTextModelWithProjection: (
        transformers.CLIPTextModelWithProjection,
        CLIP_TEXT_WITH_PROJECTION,
    ),
    CLIPVisionModelWithProjection: (transformers.CLIPVisionModelWithProjection, CLIP_VISION),
}
CASES = [
    (CLIPTextModel, TEXT),
    (CLIPTextModel, SD2_TEXT),
    (CLIPTextModelWithProjection, TEXT),
    (CLIPVisionModelWithProjection, VISION),
    (CLIPVisionModelWithProjection, ODD_VISION),
]


def stock(kind, config):
    """transformers' net of a configuration of ours."""
    configs = {"text": transformers.CLIPTextConfig, "vision": transformers.CLIPVisionConfig}
    return NETS[kind][0](configs[config.tower].from_dict(config.to_config()))


@functools.cache
def peers(kind, config, dtype=torch.float32):
    """The torch net of a configuration and ours with its weights."""
    peer = randomize_(stock(kind, config)).to(dtype)
    table = NETS[kind][1]
    return peer, load(abstract(kind, config), refs(peer.state_dict()), table, name="clip")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(net, *inputs):
    return nnx.jit(lambda net, *inputs: net(*inputs))(net, *inputs)


def texts(config):
    """Texts that end early, late and at once, padded with the end token or with another."""
    end = config.eos_token_id
    shape = (4, config.max_position_embeddings)
    ids = np.random.default_rng(0).integers(3, config.vocab_size, size=shape)
    ids[ids == end] = 3
    ids[0, 5:] = end
    ids[1, -1] = end
    ids[2, 0] = end
    ids[3, 7], ids[3, 8:] = end, 0
    return ids


@pytest.mark.parametrize("config", [TEXT, SD2_TEXT], ids=["quick_gelu", "gelu"])
def test_text_tower_equals_transformers(config):
    peer, net = peers(CLIPTextModel, config)
    ids = texts(config)
    with torch.no_grad():
        expected = peer(torch.from_numpy(ids))
    actual = run(net, ids)
    assert relative_error(actual.last_hidden_state, expected.last_hidden_state) < 1e-4
    assert relative_error(actual.pooled, expected.pooler_output) < 1e-4


def test_pooling_of_old_configs_equals_transformers():
    """With eos_token_id 2 it is the greatest token that counts, wherever 2 stands."""
    config = dataclasses.replace(TEXT, eos_token_id=2)
    peer, net = peers(CLIPTextModel, config)
    ids = texts(TEXT)
    ids[:, 3] = 2
    with torch.no_grad():
        expected = peer(torch.from_numpy(ids)).pooler_output
    assert relative_error(run(net, ids).pooled, expected) < 1e-4


def test_shorter_texts_are_taken_and_longer_ones_refused():
    peer, net = peers(CLIPTextModel, TEXT)
    ids = texts(TEXT)[:, :9]
    with torch.no_grad():
        expected = peer(torch.from_numpy(ids)).last_hidden_state
    assert relative_error(run(net, ids).last_hidden_state, expected) < 1e-4
    with pytest.raises(ValueError, match="17 tokens are more than the 16 positions"):
        run(net, np.zeros((1, 17), np.int32))


def test_text_projection_equals_transformers():
    peer, net = peers(CLIPTextModelWithProjection, TEXT)
    ids = texts(TEXT)
    with torch.no_grad():
        expected = peer(torch.from_numpy(ids)).text_embeds
    assert relative_error(run(net, ids), expected) < 1e-4


@pytest.mark.parametrize("config", [VISION, ODD_VISION], ids=["tiny", "odd"])
def test_vision_tower_equals_transformers(config):
    peer, net = peers(CLIPVisionModelWithProjection, config)
    images = normal(2, config.image_size, config.image_size, config.num_channels)
    with torch.no_grad():
        expected = peer(to_nchw(images), output_hidden_states=True)
        pooled = peer.vision_model(to_nchw(images)).pooler_output
    actual = run(net, images)
    assert relative_error(actual.image_embeds, expected.image_embeds) < 1e-4
    assert relative_error(actual.pooled, pooled) < 1e-4
    assert len(expected.hidden_states) == config.num_hidden_layers + 1
    for index in range(-4, 4):
        state = nnx.jit(lambda net, x, index=index: net.hidden_state(x, index))(net, images)
        assert relative_error(state, expected.hidden_states[index]) < 1e-4, index


def test_hidden_state_does_not_compute_the_layers_behind_it():
    _, net = peers(CLIPVisionModelWithProjection, VISION)
    images = normal(1, 32, 32, 3)

    def products(index):
        return str(jax.make_jaxpr(lambda x: net.hidden_state(x, index))(images)).count(
            "dot_general"
        )

    assert products(0) == 0
    assert products(-2) == 2 * products(1) > 0


@pytest.mark.parametrize("index", [-5, 4])
def test_hidden_state_out_of_range_is_refused(index):
    _, net = peers(CLIPVisionModelWithProjection, VISION)
    with pytest.raises(ValueError, match=rf"index must be in \[-4, 3\], got {index}"):
        net.hidden_state(normal(1, 32, 32, 3), index)


def test_images_of_another_size_are_refused():
    _, net = peers(CLIPVisionModelWithProjection, VISION)
    with pytest.raises(ValueError, match=r"images must be \(b, 32, 32, 3\), got \(1, 32, 40, 3\)"):
        net(normal(1, 32, 40, 3))


@pytest.mark.parametrize("config", [TEXT, SD2_TEXT], ids=["quick_gelu", "gelu"])
@pytest.mark.parametrize("part", ["self_attn", "layer_norm1", "mlp", "layer"])
def test_each_block_equals_transformers(part, config):
    peer, net = peers(CLIPTextModel, config)
    torch_block, block = peer.encoder.layers[1], net.encoder.layers[1]
    if part != "layer":
        torch_block, block = getattr(torch_block, part), getattr(block, part)
    x = normal(2, 9, config.hidden_size)
    mask = torch.full((9, 9), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        inputs = (
            (torch.from_numpy(x), mask)
            if part in ("self_attn", "layer")
            else (torch.from_numpy(x),)
        )
        expected = torch_block(*inputs)
    expected = expected[0] if part == "self_attn" else expected
    assert relative_error(run(block, x), expected) < 1e-5


def test_embeddings_equal_transformers():
    peer, net = peers(CLIPTextModel, TEXT)
    torch_vision, vision = peers(CLIPVisionModelWithProjection, ODD_VISION)
    ids, images = texts(TEXT), normal(2, 30, 30, 4)
    with torch.no_grad():
        text = peer.embeddings(torch.from_numpy(ids))
        image = torch_vision.vision_model.embeddings(to_nchw(images))
    assert relative_error(run(net.embeddings, ids), text) < 1e-5
    assert relative_error(run(vision.vision_model.embeddings, images), image) < 1e-5


def test_image_gradient_equals_autograd():
    peer, net = peers(CLIPVisionModelWithProjection, VISION)
    images, weight = normal(1, 32, 32, 3), normal(1, 24, seed=1)
    x = to_nchw(images).requires_grad_()
    (expected,) = torch.autograd.grad((peer(x).image_embeds * torch.from_numpy(weight)).sum(), x)
    gradient = jax.grad(lambda x, net: jnp.vdot(net(x).image_embeds, weight))
    assert relative_error(nnx.jit(gradient)(images, net), to_nhwc(expected)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "config"), CASES)
def test_round_trip_is_bit_exact(kind, config, dtype):
    peer, net = peers(kind, config, dtype)
    expected, actual = refs(peer.state_dict()), dict(dump(net, NETS[kind][1]))
    if kind is CLIPTextModel:
        expected = {f"text_model.{key}": ref for key, ref in expected.items()}
    assert actual.keys() == expected.keys()
    for key, array in actual.items():
        assert array.dtype == expected[key].dtype, key
        assert array.tobytes() == expected[key].read().tobytes(), key


@pytest.mark.parametrize(("kind", "config"), CASES)
def test_what_we_write_transformers_loads(kind, config, tmp_path):
    peer, net = peers(kind, config)
    tensors = {k: torch.from_numpy(v.copy()) for k, v in dump(net, NETS[kind][1])}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config.to_config()))
    loaded, report = NETS[kind][0].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for key, tensor in peer.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_files_of_a_whole_clip_and_of_old_versions_are_read():
    """`CLIPModel` holds both towers; versions before 4.31 wrote the position numbers."""
    configs = {"text_config": TEXT.to_config(), "vision_config": VISION.to_config()}
    whole = randomize_(
        transformers.CLIPModel(transformers.CLIPConfig(projection_dim=24, **configs))
    )
    state = whole.state_dict()
    for tower, length in (("text", 16), ("vision", 17)):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(length)[None]
    ids, images = texts(TEXT), normal(1, 32, 32, 3)
    with torch.no_grad():
        text = whole.text_model(torch.from_numpy(ids))
        text_embeds = whole.text_projection(text.pooler_output)
        vision = whole.visual_projection(whole.vision_model(to_nchw(images)).pooler_output)
    config = whole.config.to_dict()
    text_config = CLIPTextConfig.from_config(config)
    nets = {
        kind: load(abstract(kind, config), refs(state), NETS[kind][1], name="clip")
        for kind, config in (
            (CLIPTextModel, text_config),
            (CLIPTextModelWithProjection, text_config),
            (CLIPVisionModelWithProjection, CLIPVisionConfig.from_config(config)),
        )
    }
    actual = run(nets[CLIPTextModel], ids).last_hidden_state
    assert relative_error(actual, text.last_hidden_state) < 1e-4
    assert relative_error(run(nets[CLIPTextModelWithProjection], ids), text_embeds) < 1e-4
    actual = run(nets[CLIPVisionModelWithProjection], images).image_embeds
    assert relative_error(actual, vision) < 1e-4


@pytest.mark.parametrize(
    ("kind", "config", "count"),
    [
        (CLIPTextModel, CLIPTextConfig.sd15(), 123_060_480),
        (CLIPTextModel, CLIPTextConfig.sd21(), 340_387_840),
        (CLIPVisionModelWithProjection, CLIPVisionConfig.vit_b32(), 87_849_216),
        (CLIPVisionModelWithProjection, CLIPVisionConfig.vit_l14(), 303_966_208),
        (CLIPVisionModelWithProjection, CLIPVisionConfig.vit_h14(), 632_076_800),
    ],
    ids=["sd15", "sd21", "vit_b32", "vit_l14", "vit_h14"],
)
def test_full_size_has_the_names_and_shapes_of_transformers(kind, config, count):
    with torch.device("meta"):
        peer = stock(kind, config)
    prefix = "text_model." if kind is CLIPTextModel else ""
    expected = {prefix + key: tuple(tensor.shape) for key, tensor in peer.state_dict().items()}
    shapes = torch_shapes(abstract(kind, config), NETS[kind][1])
    assert shapes == expected
    assert sum(map(np.prod, shapes.values())) == count


@pytest.mark.parametrize(("kind", "config"), CASES)
def test_config_survives_transformers(kind, config):
    assert type(config).from_config(stock(kind, config).config.to_dict()) == config


def test_absent_fields_are_transformers_defaults():
    for ours, theirs in (
        (CLIPTextConfig, transformers.CLIPTextConfig),
        (CLIPVisionConfig, transformers.CLIPVisionConfig),
    ):
        assert ours.from_config({}) == ours.from_config(theirs().to_dict())


def test_fields_of_a_tower_under_either_name_are_read():
    config = {
        "model_type": "clip",
        "projection_dim": 40,
        "text_config": {"hidden_size": 64, "num_hidden_layers": 3},
        "text_config_dict": {"hidden_size": 128},
        "vision_config": {"patch_size": 16},
        "vision_config_dict": None,
    }
    expected = CLIPTextConfig(hidden_size=128, num_hidden_layers=3, projection_dim=40)
    assert CLIPTextConfig.from_config(config) == expected
    expected = CLIPVisionConfig(patch_size=16, projection_dim=40)
    assert CLIPVisionConfig.from_config(config) == expected


def test_unsupported_configs_are_refused_by_name():
    config = TEXT.to_config() | {"hidden_act": "relu", "eos_token_id": [1, 2], "top_k": 50}
    with pytest.raises(UserError) as error:
        CLIPTextConfig.from_config(config)
    assert "hidden_act='relu'" in str(error.value)
    assert "eos_token_id=[1, 2]" in str(error.value)
    assert "top_k" not in str(error.value)
    config = VISION.to_config() | {"image_size": [32, 48], "patch_size": None}
    with pytest.raises(UserError, match=r"image_size=\[32, 48\].*patch_size=None"):
        CLIPVisionConfig.from_config(config)
    config = VISION.to_config() | {"quantization_config": {"bits": 4}}
    with pytest.raises(UserError, match="quantization_config"):
        CLIPVisionConfig.from_config(config)
    with pytest.raises(UserError, match=r"model_type='clip_text_model'.*'clip_vision_model'"):
        CLIPVisionConfig.from_config(TEXT.to_config())
    with pytest.raises(UserError, match="hidden_size 32 does not divide into 5 heads"):
        dataclasses.replace(TEXT, num_attention_heads=5)


def test_half_precision_stays_near():
    peer, net = peers(CLIPTextModel, TEXT)
    low = abstract(CLIPTextModel, TEXT, dtype=jnp.bfloat16)
    low = load(low, refs(peer.state_dict()), CLIP_TEXT, name="clip", dtype=jnp.bfloat16)
    actual = run(low, texts(TEXT)).last_hidden_state
    assert actual.dtype == jnp.bfloat16
    expected = run(net, texts(TEXT)).last_hidden_state
    assert relative_error(actual, expected) < 0.05
