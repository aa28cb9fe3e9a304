"""Each component of a folder run in PyTorch and in Flax on the same random inputs.

The PyTorch side is stock: diffusers' and transformers' classes load the folder as anyone's program
would, the adapter through `load_ip_adapter`. Only ArcFace and DECA's encoder, which no library
ships, are ours.
"""

# diffusers annotates its configurations loosely and does not declare what it exports.
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from safetensors.torch import load_file

from convert.components import COMPONENTS
from convert.folder import STABLE_DIFFUSION, Model, assemble, read
from convert.peers import DecaEncoder, IResNet
from fmv2.errors import UserError
from fmv2.models.shadingnet import ShadingNet

_BATCH = 2
_SIDE = 32  # of the latents at most: what large models are tried with on any machine
_SCALE, _S_SCALE, _SHADING_SCALE = 0.7, 0.6, 0.5


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far Flax is from PyTorch in the outputs of one component."""

    component: str
    absolute: float
    """max |flax - torch|."""
    relative: float
    """max |flax - torch| / max |torch|."""


def compare(folder: Path) -> Iterator[Deviation]:
    """The deviation of each component as it is found, all in float32.

    Raises:
      UserError: the folder is not a model, or not a whole one.
    """
    model = read(assemble([folder]), dtype=jnp.float32)
    if missing := [name for name in STABLE_DIFFUSION if name not in model.nets()]:
        raise UserError(f"{folder}: stock diffusers cannot load it without {', '.join(missing)}")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        yield from _text_encoder(model, pipeline)
        yield from _vae(model, pipeline)
        if model.image_encoder is not None:
            yield from _image_encoder(model, pipeline)
        if model.face_encoder is not None:
            yield from _face_encoder(model, folder)
        if model.coefficient_encoder is not None:
            yield from _coefficient_encoder(model, folder)
        yield from _denoisers(model, pipeline, folder)


def _text_encoder(model: Model, pipeline: Any) -> Iterator[Deviation]:
    assert model.text_encoder is not None
    config = model.text_encoder.config
    shape = (_BATCH, config.max_position_embeddings)
    ids = jnp.asarray(np.random.default_rng(0).integers(config.vocab_size, size=shape))
    expected = pipeline.text_encoder(_torch(ids)).last_hidden_state
    yield _deviation("CLIP text encoder", [model.text_encoder(ids).last_hidden_state], [expected])


def _vae(model: Model, pipeline: Any) -> Iterator[Deviation]:
    assert model.vae is not None
    side = _latent_side(model)
    pixels = side * model.vae.config.downscale
    images = _normal(1, _BATCH, pixels, pixels, model.vae.config.in_channels).clip(-1, 1)
    latents = _normal(2, _BATCH, side, side, model.vae.config.latent_channels)
    moments = pipeline.vae.encode(_nchw(images)).latent_dist
    expected = [_nhwc(moments.mean), _nhwc(moments.logvar)]
    yield _deviation("VAE encoder", model.vae.encode(images), expected)
    expected = [_nhwc(pipeline.vae.decode(_nchw(latents)).sample)]
    yield _deviation("VAE decoder", [model.vae.decode(latents)], expected)


def _image_encoder(model: Model, pipeline: Any) -> Iterator[Deviation]:
    encoder = model.image_encoder
    assert encoder is not None
    size = encoder.config.image_size
    pixels = _normal(3, _BATCH, size, size, encoder.config.num_channels)
    output = pipeline.image_encoder(_nchw(pixels), output_hidden_states=True)
    actual = [encoder(pixels).image_embeds, encoder.hidden_state(pixels, -2)]
    expected = [output.image_embeds, output.hidden_states[-2]]
    yield _deviation("CLIP image encoder", actual, expected)


def _face_encoder(model: Model, folder: Path) -> Iterator[Deviation]:
    encoder = model.face_encoder
    assert encoder is not None
    peer = _filled(IResNet(encoder.config), "face_encoder", folder)
    size = encoder.config.image_size
    images = _normal(4, _BATCH, size, size, 3).clip(-1, 1)
    yield _deviation("ArcFace", [encoder(images)], [peer(_nchw(images))])


def _coefficient_encoder(model: Model, folder: Path) -> Iterator[Deviation]:
    encoder = model.coefficient_encoder
    assert encoder is not None
    peer = _filled(DecaEncoder(encoder.config), "coefficient_encoder", folder)
    size = encoder.config.image_size
    images = (_normal(10, _BATCH, size, size, 3) / 4 + 0.5).clip(0, 1)
    found = jnp.concatenate([x.reshape(_BATCH, -1) for x in encoder(images)], axis=1)
    yield _deviation("DECA encoder", [found], [peer(_nchw(images))])


def _filled(peer: torch.nn.Module, name: str, folder: Path) -> torch.nn.Module:
    """The peer with a component's weights, in float32."""
    # strict=False: the counter of training steps is no weight, and is not in the file.
    tensors = load_file(folder / name / COMPONENTS[name].file)
    missing = peer.load_state_dict(tensors, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    return peer.float().eval()


def _denoisers(model: Model, pipeline: Any, folder: Path) -> Iterator[Deviation]:
    """The U-Net bare, then adapter and ShadingNet, then all of them together."""
    assert model.unet is not None
    config = model.unet.config
    side = _latent_side(model)
    latents = _normal(5, _BATCH, side, side, config.in_channels)
    timesteps = jnp.linspace(981, 21, _BATCH).astype(jnp.int32)
    context = _normal(6, _BATCH, 77, config.cross_attention_dim)
    given = (_nchw(latents), _torch(timesteps))

    expected = [_nhwc(pipeline.unet(*given, _torch(context)).sample)]
    actual = [model.unet(latents, timesteps, context).noise]
    yield _deviation("U-Net", actual, expected)

    if model.adapter is None:
        return
    shape = model.adapter.config
    id_embeds = _normal(7, _BATCH, shape.id_dim)
    id_embeds /= jnp.linalg.norm(id_embeds, axis=-1, keepdims=True)
    faces = _normal(8, _BATCH, 257, shape.face_dim)
    id_tokens = model.adapter.image_proj(id_embeds, faces, _S_SCALE)
    file = COMPONENTS["adapter"].file
    pipeline.load_ip_adapter(folder, "ip_adapter", file, image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(_SCALE)
    projector = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    projector.shortcut, projector.shortcut_scale = True, _S_SCALE
    projector.clip_embeds = _torch(faces)[:, None]
    tokens = projector(_torch(id_embeds))
    yield _deviation("ID tokens", [id_tokens], [tokens])

    added = {"image_embeds": [_torch(id_embeds)[:, None]]}
    output = pipeline.unet(*given, _torch(context), added_cond_kwargs=added).sample
    adapted: dict[str, Any] = {"adapter": model.adapter, "id_tokens": id_tokens, "scale": _SCALE}
    actual = [model.unet(latents, timesteps, context, **adapted).noise]
    yield _deviation("U-Net with adapter", actual, [_nhwc(output)])

    if model.shadingnet is None:
        return
    shading = _shading(model.shadingnet, side)
    peer = ControlNetModel.from_pretrained(folder, subfolder="shadingnet", dtype=torch.float32)
    down, mid = peer(*given, tokens, _nchw(shading), _SHADING_SCALE, return_dict=False)
    residuals = model.shadingnet(latents, timesteps, id_tokens, shading, _SHADING_SCALE)
    expected = [_nhwc(x) for x in (*down, mid)]
    yield _deviation("ShadingNet", [*residuals.down, residuals.mid], expected)

    output = pipeline.unet(
        *given,
        _torch(context),
        added_cond_kwargs=added,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample
    actual = [model.unet(latents, timesteps, context, **adapted, residuals=residuals).noise]
    yield _deviation("U-Net with adapter and ShadingNet", actual, [_nhwc(output)])


def _latent_side(model: Model) -> int:
    assert model.unet is not None
    return min(model.unet.config.sample_size, _SIDE)


def _shading(net: ShadingNet, side: int) -> jax.Array:
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    shape = (_BATCH, factor * side, factor * side, net.config.conditioning_channels)
    return jnp.asarray(np.random.default_rng(9).random(shape, np.float32))


def _deviation(component: str, actual: Sequence[Any], expected: Sequence[Any]) -> Deviation:
    """The worst over all outputs, each measured against its own size."""
    errors, sizes = [], []
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        errors.append(np.abs(a - e).max())
        sizes.append(np.abs(e).max())
    # NumPy's max, which lets no NaN pass.
    absolute, relative = np.max(errors), np.max(np.divide(errors, sizes))
    return Deviation(component, float(absolute), float(relative))


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def _torch(x: jax.Array) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def _nchw(x: jax.Array) -> torch.Tensor:
    return _torch(jnp.moveaxis(x, -1, 1))


def _nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)
