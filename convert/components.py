"""The components of a Face-MakeUpV2 model: how each is shaped, built, named and stored."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from convert import engine
from convert.kinds import Part
from convert.rules import Table
from convert.sources import Tensors
from convert.tables import (
    arcface,
    clip,
    coefficient_encoder,
    id_adapter,
    shadingnet,
    unet,
    vae,
)
from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.arcface import ArcFace, ArcFaceConfig
from fmv2.models.clip_text import CLIPTextConfig, CLIPTextModel
from fmv2.models.clip_vision import CLIPVisionConfig, CLIPVisionModelWithProjection
from fmv2.models.coefficient_encoder import CoefficientEncoder, CoefficientEncoderConfig
from fmv2.models.id_adapter import IdAdapter, IdAdapterConfig
from fmv2.models.shadingnet import ShadingNet, ShadingNetConfig
from fmv2.models.unet import UNet, UNetConfig
from fmv2.models.vae import AutoencoderKL, AutoencoderKLConfig


@dataclasses.dataclass(frozen=True)
class Component:
    """One net."""

    net: Callable[..., nnx.Module]
    shape: Callable[[Part, Any], Any]
    """Its config, from the file and the config of the U-Net, on which only some depend."""
    table: Callable[[Any], Table]
    title: str
    file: str = "diffusion_pytorch_model.safetensors"
    """Its weights in a folder of its own, by the name that its stock class looks for."""


def _configured(
    from_config: Callable[[Mapping[str, Any]], Any],
) -> Callable[[Part, Any], Any]:
    def shape(part: Part, _: UNetConfig | None):
        if part.config is None:
            raise UserError("its config.json is missing beside the weights")
        return from_config(part.config)

    return shape


def _shadingnet_config(part: Part, unet: UNetConfig) -> ShadingNetConfig:
    """From `config.json`; where there is none, from the U-Net's and the widths in the file."""
    if part.config is not None:
        return ShadingNetConfig.from_config(part.config)
    embedding = "controlnet_cond_embedding"
    first = f"{embedding}.conv_in.weight"
    fields: dict[str, Any] = {}
    if first in part.tensors:
        width, fields["conditioning_channels"] = part.tensors[first].shape[:2]
        widths, i = [width], 1
        while (name := f"{embedding}.blocks.{i}.weight") in part.tensors:
            widths.append(part.tensors[name].shape[0])
            i += 2
        fields["conditioning_embedding_out_channels"] = tuple(widths)
    return ShadingNetConfig.for_unet(unet, **fields)


def _adapter_config(part: Part, unet: UNetConfig) -> IdAdapterConfig:
    """From the U-Net's config and the widths in the file, which has no other config.

    What cannot be told keeps its default; the engine then says what the file lacks.
    """
    resampler = "image_proj.perceiver_resampler"
    sizes = {
        "id_dim": ("image_proj.proj.0.weight", 1, 1),
        "num_tokens": ("image_proj.proj.2.weight", 0, unet.cross_attention_dim),
        "face_dim": (f"{resampler}.proj_in.weight", 1, 1),
        "resampler_heads": (f"{resampler}.layers.0.0.to_q.weight", 0, 64),
        "rank": ("ip_adapter.0.to_q_lora.down.weight", 0, 1),
    }
    fields = {
        field: shape[axis] // unit
        for field, (name, axis, unit) in sizes.items()
        if name in part.tensors
        and len(shape := part.tensors[name].shape) == 2
        and shape[axis] % unit == 0
    }
    layers = {
        found[0]
        for name in part.tensors
        if (found := re.match(re.escape(resampler) + r"\.layers\.\d+\.", name))
    }
    if layers:
        fields["resampler_depth"] = len(layers)
    return IdAdapterConfig.for_unet(unet, **fields)


def _arcface_config(part: Part, _: UNetConfig | None) -> ArcFaceConfig:
    """From the widths in the file, which has no other config."""
    stages = _stages(part, "layer")
    if stages is None or "fc.weight" not in part.tensors:
        raise UserError("not an IResNet: it lacks fc.weight or one of layer1 to layer4")
    embedding_size, flat = part.tensors["fc.weight"].shape
    return ArcFaceConfig(
        **stages,
        embedding_size=embedding_size,
        image_size=16 * math.isqrt(flat // stages["widths"][-1]),
    )


def _coefficient_encoder_config(part: Part, _: UNetConfig | None) -> CoefficientEncoderConfig:
    """From the widths in the file; the size of its crops from `config.json`, else it is DECA's."""
    stages, hidden = _stages(part, "encoder.layer"), part.tensors.get("layers.0.weight")
    if stages is None or hidden is None:
        raise UserError("not DECA's encoder: it lacks layers.0.weight or one of layer1 to layer4")
    image_size = {k: v for k, v in (part.config or {}).items() if k == "image_size"}
    return CoefficientEncoderConfig(**stages, hidden_size=hidden.shape[0], **image_size)


def _stages(part: Part, prefix: str) -> dict[str, Any] | None:
    """How many blocks each of a ResNet's four stages has, and their inner widths."""
    widths = {
        (int(found[1]), int(found[2])): ref.shape[0]
        for name, ref in part.tensors.items()
        if (found := re.fullmatch(re.escape(prefix) + r"(\d)\.(\d+)\.conv1\.weight", name))
    }
    stages = range(1, 5)
    if not {(stage, 0) for stage in stages} <= set(widths):
        return None
    return {
        "layers": tuple(sum(stage == s for s, _ in widths) for stage in stages),
        "widths": tuple(widths[stage, 0] for stage in stages),
    }


COMPONENTS: Mapping[str, Component] = {
    "unet": Component(UNet, _configured(UNetConfig.from_config), unet.table, "U-Net"),
    "vae": Component(
        AutoencoderKL, _configured(AutoencoderKLConfig.from_config), lambda _: vae.VAE, "VAE"
    ),
    "text_encoder": Component(
        CLIPTextModel,
        _configured(CLIPTextConfig.from_config),
        lambda _: clip.CLIP_TEXT,
        "CLIP text encoder",
        "model.safetensors",
    ),
    "image_encoder": Component(
        CLIPVisionModelWithProjection,
        _configured(CLIPVisionConfig.from_config),
        lambda _: clip.CLIP_VISION,
        "CLIP image encoder",
        "model.safetensors",
    ),
    "face_encoder": Component(
        ArcFace, _arcface_config, arcface.table, "ArcFace", "model.safetensors"
    ),
    "coefficient_encoder": Component(
        CoefficientEncoder,
        _coefficient_encoder_config,
        lambda _: coefficient_encoder.TABLE,
        "DECA encoder",
        "model.safetensors",
    ),
    "shadingnet": Component(ShadingNet, _shadingnet_config, shadingnet.table, "ShadingNet"),
    "adapter": Component(
        IdAdapter,
        _adapter_config,
        lambda _: id_adapter.TABLE,
        "ID adapter",
        # ComfyUI tells PlusV2 by its file's name.
        "face-makeup-plusv2.safetensors",
    ),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to load a component: its abstract net, its table, and the tensors to fill it with."""

    net: Any
    table: Table
    tensors: Tensors

    def load(
        self,
        name: str,
        dtype: DTypeLike | None = None,
        sharding: engine.Placement = None,
    ) -> Any:
        """The net with its weights; arguments as of `engine.load`."""
        return engine.load(
            self.net, self.tensors, self.table, name=name, dtype=dtype, sharding=sharding
        )


def plan(parts: Mapping[str, Part], unet: UNetConfig | None = None) -> dict[str, Plan]:
    """How to load each part; nothing is read before all of them are known to fit.

    Args:
      parts: by component.
      unet: the U-Net that adapter and ShadingNet belong to; None is the one among the parts.
    Raises:
      ConversionError: every field of a configuration that is not supported, every tensor that is
        missing, unknown or of another shape, in all components.
    """
    plans: dict[str, Plan] = {}
    faults: list[str] = []
    for name, component in COMPONENTS.items():  # the U-Net first
        if name not in parts:
            continue
        part = parts[name]
        try:
            if name in ("adapter", "shadingnet") and unet is None:
                raise UserError("the U-Net that it belongs to is missing")
            config = component.shape(part, unet)
            if name == "unet":
                unet = config
            net, table = abstract(component.net, config), component.table(config)
            engine.check(net, part.tensors, table, name=name)
            plans[name] = Plan(net, table, part.tensors)
        except engine.ConversionError as e:
            faults += [f"{name}: {fault}" for fault in e.faults]
        except ValueError as e:
            faults.append(f"{name}: {e}")
            if name == "unet":
                break  # the others depend on its shape
    if faults:
        raise engine.ConversionError("does not fit", faults)
    return plans
