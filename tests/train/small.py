"""A Face-MakeUpV2 of few layers, whose step compiles in seconds: its shapes, its base folder."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.components import COMPONENTS
from convert.folder import Model, write
from data.codec import Record
from data.schema import Schema
from fmv2.models.abstract import abstract
from fmv2.models.arcface import ArcFaceConfig
from fmv2.models.clip_text import CLIPTextConfig
from fmv2.models.clip_vision import CLIPVisionConfig
from fmv2.models.unet import UNetConfig
from fmv2.models.vae import AutoencoderKLConfig
from fmv2.tokens import Tokens
from tests.data.faces import face_record, write_dataset
from tests.random_model import stable_diffusion

IMAGE_SIZE = 64
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def small_configs(width: int = 16, vocabulary: int = 514) -> dict[str, Any]:
    """Of every net of a base; its attention heads and widths divide by two and by eight."""
    return {
        "unet": UNetConfig(
            block_out_channels=(width, 2 * width),
            cross_attention=(False, True),
            num_heads=(2, 2),
            cross_attention_dim=64,
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=IMAGE_SIZE // 8,
        ),
        "vae": AutoencoderKLConfig(
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=IMAGE_SIZE,
        ),
        "text_encoder": CLIPTextConfig(
            hidden_size=64,
            intermediate_size=128,
            num_attention_heads=2,
            num_hidden_layers=1,
            vocab_size=vocabulary,
            eos_token_id=vocabulary - 1,
        ),
        "image_encoder": CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=2,
            num_hidden_layers=2,
            projection_dim=16,
            image_size=16,
            patch_size=8,
        ),
        "face_encoder": ArcFaceConfig(
            layers=(1, 1, 1, 1), widths=(4, 4, 8, 8), embedding_size=16, image_size=32
        ),
    }


def write_base(folder: Path) -> Path:
    """A base folder of random weights, its adapter and ShadingNet to be begun afresh."""
    stable_diffusion().tokenizer.save_pretrained(folder.parent / "tokenizer")
    tokenizer = folder.parent / "tokenizer"
    rng = np.random.default_rng(0)
    nets = {
        name: random_net(abstract(COMPONENTS[name].net, config), rng)
        for name, config in small_configs(vocabulary=Tokens.load(tokenizer).size).items()
    }
    files = {path.name: path.read_bytes() for path in tokenizer.iterdir()}
    write(Model(**nets, tokenizer=files, scheduler=SCHEDULER), folder)
    return folder


def random_net(net: Any, rng: np.random.Generator) -> Any:
    """The abstract net with values: kernels of unit gain, scales and variances about 1."""

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        if len(leaf.shape) > 1:
            values = rng.normal(size=leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5
        elif name.endswith(("scale", "var", "weight")):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values = rng.normal(size=leaf.shape) / 10
        return jnp.asarray(values.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, net)


def _face(number: int, schema: Schema) -> Record:
    """Whose regions are halves of the picture."""
    record = face_record(number, schema, side=IMAGE_SIZE)
    halves = np.zeros((2, IMAGE_SIZE, IMAGE_SIZE), bool)
    halves[0, : IMAGE_SIZE // 2] = halves[1, :, : IMAGE_SIZE // 2] = True
    captions = {
        kind: dataclasses.replace(caption, masks=halves[: len(caption.masks)])
        for kind, caption in record.captions.items()
    }
    return dataclasses.replace(record, captions=captions)


def write_records(folder: Path, base: Path) -> Path:
    """48 faces to train on and 16 to validate with, for this base's tokenizer."""
    return write_dataset(
        folder,
        {"train": (32, 16), "validation": (16,)},
        record=_face,
        metadata={"tokenizer": Tokens.load(base / "tokenizer").fingerprint},
    )
