"""A Face-MakeUpV2 of few layers, whose step compiles in seconds: its shapes, its base folder."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from convert.components import COMPONENTS
from convert.folder import Model, write
from convert.random_model import stable_diffusion
from data.tokens import Tokens
from fmv2.models.arcface import ArcFaceConfig
from fmv2.models.clip_text import CLIPTextConfig
from fmv2.models.clip_vision import CLIPVisionConfig
from fmv2.models.unet import UNetConfig
from fmv2.models.vae import AutoencoderKLConfig
from tests.data.faces import face_record, write_dataset

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
    nets = {
        name: jax.jit(lambda name=name, config=config: _random(name, config))()
        for name, config in small_configs(vocabulary=Tokens.load(tokenizer).size).items()
    }
    files = {path.name: path.read_bytes() for path in tokenizer.iterdir()}
    write(Model(**nets, tokenizer=files, scheduler=SCHEDULER), folder)
    return folder


def _random(name: str, config: Any) -> Any:
    return COMPONENTS[name].net(config, rngs=nnx.Rngs(0))


def write_records(folder: Path, base: Path) -> Path:
    """48 faces to train on and 16 to validate with, for this base's tokenizer."""
    return write_dataset(
        folder,
        {"train": (32, 16), "validation": (16,)},
        record=lambda number, schema: face_record(number, schema, side=IMAGE_SIZE),
        metadata={"tokenizer": Tokens.load(base / "tokenizer").fingerprint},
    )
