"""A tiny model of random weights in the forms that PyTorch programs ship.

It has every part of Stable Diffusion 1.5 and of Face-MakeUpV2, down to the 32 attention layers, in
widths that any machine runs.
"""

# diffusers annotates its configurations loosely and does not declare what it exports.
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

import json
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from convert.engine import torch_shapes
from convert.peers import DecaEncoder, IResNet
from convert.tables import id_adapter
from fmv2.models.abstract import abstract
from fmv2.models.arcface import ArcFaceConfig
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig
from fmv2.models.id_adapter import IdAdapter, IdAdapterConfig
from fmv2.models.unet import UNetConfig

Module = TypeVar("Module", bound=torch.nn.Module)

_CONTEXT_DIM = 64  # one head of the resampler
_FACE_DIM = 32
_ID_DIM = 16


def write_sources(folder: Path) -> tuple[Path, ...]:
    """Writes a Stable Diffusion folder, upstream's `model.bin`, a CLIP image encoder, ArcFace and
    DECA.

    Returns:
      their paths, in this order.
    """
    torch.manual_seed(0)
    base, adapters = folder / "base", folder / "model.bin"
    clip, face, deca = folder / "clip", folder / "backbone.pth", folder / "deca_model.tar"
    pipeline = stable_diffusion()
    pipeline.save_pretrained(base)
    torch.save(model_bin(pipeline.unet), adapters)
    image_encoder().save_pretrained(clip)
    torch.save(face_encoder().state_dict(), face)
    encoder = randomized(DecaEncoder(CoefficientEncoderConfig.tiny()))
    torch.save({"E_flame": encoder.state_dict(), "E_detail": {"weight": torch.ones(1)}}, deca)
    return base, adapters, clip, face, deca


def stable_diffusion() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 in miniature."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32, 32),
        attention_head_dim=2,  # the number of heads
        cross_attention_dim=_CONTEXT_DIM,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=_CONTEXT_DIM,
            intermediate_size=2 * _CONTEXT_DIM,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
            pad_token_id=len(words) - 1,
        )
    )
    return StableDiffusionPipeline(
        vae=randomized(vae),
        text_encoder=randomized(text_encoder),
        tokenizer=tokenizer,
        unet=randomized(unet),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def model_bin(unet: UNet2DConditionModel) -> dict[str, dict[str, torch.Tensor]]:
    """What upstream publishes: projector, adapter layers and control net for this U-Net."""
    shadingnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    tree: dict[str, dict[str, torch.Tensor]] = {
        "image_proj": {},
        "ip_adapter": {},
        "controlnet": randomized(shadingnet).state_dict(),
    }
    for key, tensor in adapter(unet).items():
        group, _, name = key.partition(".")
        tree[group][name] = tensor
    return tree


def adapter(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """An adapter for this U-Net, under the names of IP-Adapter-FaceID-PlusV2."""
    shape = UNetConfig.from_config(json.loads(unet.to_json_string()))
    config = IdAdapterConfig.for_unet(shape, id_dim=_ID_DIM, face_dim=_FACE_DIM, rank=4)
    net = abstract(IdAdapter, config)
    return {
        key: torch.randn(shape) * shape[-1] ** -0.5
        if len(shape) > 1
        else 1 + torch.randn(shape) / 10
        for key, shape in torch_shapes(net, id_adapter.TABLE).items()
    }


def image_encoder() -> CLIPVisionModelWithProjection:
    """The image half of CLIP."""
    config = CLIPVisionConfig(
        hidden_size=_FACE_DIM,
        intermediate_size=2 * _FACE_DIM,
        projection_dim=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        hidden_act="gelu",
    )
    return randomized(CLIPVisionModelWithProjection(config))


def face_encoder() -> IResNet:
    """ArcFace."""
    widths = (4, 6, 8, 10)
    config = ArcFaceConfig(
        layers=(1, 2, 1, 1), widths=widths, embedding_size=_ID_DIM, image_size=32
    )
    return randomized(IResNet(config))


def randomized(module: Module) -> Module:
    """The module with random weights and norm statistics throughout, none of them 0 or 1, to eval.

    Kernels keep the size of what they are given.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(0 if name.endswith("bias") else 1, 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return module.eval()
