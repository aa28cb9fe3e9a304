"""A model as one diffusers folder: the only form in which weights are saved.

The folder is Stable Diffusion as stock diffusers loads it, and beside it what Face-MakeUpV2 adds:

    unet/ vae/ text_encoder/ tokenizer/ scheduler/ model_index.json
    shadingnet/       a stock ControlNetModel
    ip_adapter/       IP-Adapter-FaceID-PlusV2, which load_ip_adapter takes
    image_encoder/    CLIP with projection
    face_encoder/     ArcFace, under arcface_torch's names
    coefficient_encoder/    DECA's coarse encoder, under its names
    head/             the 3D head whose coefficients those are, see `fmv2.face.head`
    pytorch_lora_weights.safetensors    the adapter's LoRA once more, for load_lora_weights
    pipeline.py README.md               its own PyTorch pipeline, and the model card

A model in the making lacks some of Stable Diffusion's nets; its `model_index.json` names them null.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from convert import card, engine, runs
from convert.components import COMPONENTS, plan
from convert.engine import TensorRef
from convert.kinds import Part, Source
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.face.head import Head, load_head, save_head
from fmv2.models.arcface import ArcFace
from fmv2.models.clip_text import CLIPTextModel
from fmv2.models.clip_vision import CLIPVisionModelWithProjection
from fmv2.models.coefficient_encoder import CoefficientEncoder
from fmv2.models.id_adapter import IdAdapter
from fmv2.models.shadingnet import ShadingNet
from fmv2.models.unet import UNet
from fmv2.models.vae import AutoencoderKL

LORA_FILE = "pytorch_lora_weights.safetensors"
UPSTREAM_FILE = "model.bin"
STABLE_DIFFUSION = ("unet", "vae", "text_encoder")
"""The nets that stock diffusers cannot do without."""
_TEMPLATES = Path(__file__).parent / "templates"
_DIFFUSERS_VERSION = "0.42.1"  # the one that our tests load these folders with

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Every component of a model. A net may be absent."""

    tokenizer: Mapping[str, bytes]
    """The files of the tokenizer, by name."""
    scheduler: Mapping[str, Any]
    """diffusers' `scheduler_config.json`."""
    unet: UNet | None = None
    vae: AutoencoderKL | None = None
    text_encoder: CLIPTextModel | None = None
    shadingnet: ShadingNet | None = None
    adapter: IdAdapter | None = None
    image_encoder: CLIPVisionModelWithProjection | None = None
    face_encoder: ArcFace | None = None
    coefficient_encoder: CoefficientEncoder | None = None
    head: Head | None = None

    def nets(self) -> dict[str, Any]:
        """The nets that are there, by component."""
        found = {name: getattr(self, name) for name in COMPONENTS}
        return {name: net for name, net in found.items() if net is not None}


@dataclasses.dataclass(frozen=True)
class Assembly:
    """What several sources hold together; nothing but names, shapes and dtypes has been read."""

    parts: Mapping[str, Part]
    tokenizer: Path
    scheduler: Mapping[str, Any]
    head: Path | None
    """The folder of the 3D head."""
    notes: tuple[str, ...]


def assemble(given: Sequence[Path | Source]) -> Assembly:
    """All sources as one, each told by its contents; later ones replace what earlier ones hold.

    Raises:
      UserError: a path that cannot be used, tensors of no component, or no Stable Diffusion folder.
    """
    sources = [source if isinstance(source, Source) else runs.identify(source) for source in given]
    faults = [f"{s.path}: unknown tensors {', '.join(s.unknown)}" for s in sources if s.unknown]
    parts: dict[str, Part] = {}
    notes = []
    for source in sources:
        notes += [f"{source.path}: {note}" for note in source.notes]
        for name, part in source.parts.items():
            if name == "lora" and "adapter" not in parts:
                faults.append(f"{source.path}: a LoRA alone: name its adapter before it")
            elif name == "lora":
                parts["adapter"] = Part({**parts["adapter"].tensors, **part.tensors})
            elif name in parts:
                notes.append(f"{source.path}: replaces {name}")
                parts[name] = Part(part.tensors, part.config or parts[name].config)
            else:
                parts[name] = part
    base, head = (
        next((found for s in reversed(sources) if (found := getattr(s, name))), None)
        for name in ("base", "head")
    )
    if base is None:
        kinds = ", ".join(source.kind for source in sources)
        faults.append(f"no Stable Diffusion folder among the sources ({kinds}): name one first")
    if base is None or faults:
        raise UserError("; ".join(faults))
    if missing := [name for name in STABLE_DIFFUSION if name not in parts]:
        notes.append(f"a model in the making, without {', '.join(missing)}")
    return Assembly(parts, base.tokenizer, base.scheduler, head, tuple(notes))


def read(
    source: Assembly,
    *,
    dtype: DTypeLike | None = None,
    sharding: Callable[[str, str], Sharding] | Sharding | None = None,
    on_read: Callable[[int], None] = lambda size: None,
) -> Model:
    """The nets with the source's weights.

    Args:
      source: from `assemble`.
      dtype: of the weights; None keeps each tensor's own.
      sharding: where they go: one for all, or a function of component and Flax path; None is the
        default device.
      on_read: told the bytes of each tensor as it is read.
    Raises:
      UserError: all that does not fit, before anything is read.
    """
    plans, faults = {}, []
    try:
        plans = plan({name: _observed(part, on_read) for name, part in source.parts.items()})
    except engine.ConversionError as e:
        faults += e.faults
    try:
        NoiseSchedule.from_config(source.scheduler)
    except ValueError as e:
        faults.append(str(e))
    if faults:
        raise engine.ConversionError("does not fit", faults)

    def place(name: str):
        return partial(sharding, name) if callable(sharding) else sharding

    return Model(
        **{name: plan.load(name, dtype, place(name)) for name, plan in plans.items()},
        tokenizer={p.name: p.read_bytes() for p in source.tokenizer.iterdir() if p.is_file()},
        scheduler=source.scheduler,
        head=None if source.head is None else load_head(source.head),
    )


def _observed(part: Part, on_read: Callable[[int], None]) -> Part:
    def observed(ref: TensorRef) -> TensorRef:
        def read() -> np.ndarray:
            array = ref.read()
            on_read(array.nbytes)
            return array

        return dataclasses.replace(ref, read=read)

    return Part({key: observed(ref) for key, ref in part.tensors.items()}, part.config)


def write(
    model: Model,
    out: Path,
    *,
    dtype: DTypeLike | None = None,
    upstream: bool = False,
    on_write: Callable[[int], None] = lambda size: None,
) -> None:
    """Writes the folder, whole or not at all.

    Args:
      model: what to write.
      out: a path that is free, or an empty folder.
      dtype: of floating-point weights in the files; None keeps each one's own.
      upstream: add `model.bin` in the form of the published PyTorch code.
      on_write: told the bytes of each component when it is written.
    Raises:
      UserError: `out` is taken, or `upstream` of a model without adapter or ShadingNet.
    """
    refuse_taken(out)
    if upstream and (model.adapter is None or model.shadingnet is None):
        raise UserError("model.bin holds adapter and ShadingNet, and this model lacks one of them")
    with written_whole(out) as folder:
        rows = []
        for name, net in model.nets().items():
            tensors = _arrays(name, net, dtype)
            rows.append(_write_net(folder, name, net, tensors))
            on_write(sum(array.nbytes for array in tensors.values()))
        if model.adapter is not None:
            lora = _peft_names(_arrays("adapter", model.adapter, dtype), model.adapter)
            _write_tensors(folder / LORA_FILE, lora)
            shutil.copy(_TEMPLATES / "pipeline.py", folder)
        if model.head is not None:
            (folder / "head").mkdir()
            save_head(model.head, folder / "head")
        if upstream:
            _write_upstream(folder / UPSTREAM_FILE, model, dtype)
        (folder / "tokenizer").mkdir()
        for name, content in model.tokenizer.items():
            (folder / "tokenizer" / name).write_bytes(content)
        _write_json(folder / "scheduler" / "scheduler_config.json", model.scheduler)
        _write_json(folder / "model_index.json", _model_index(model))
        (folder / "README.md").write_text(card.render(rows, lora=LORA_FILE))


def refuse_taken(out: Path) -> None:
    """Raises a UserError unless the path is free or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder: name another, or remove it")


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when all is written, and is removed when not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        yield folder
        folder.replace(out)


def _write_net(folder: Path, name: str, net: Any, tensors: Arrays) -> card.Row:
    component = COMPONENTS[name]
    place = Path("ip_adapter" if name == "adapter" else name, component.file)
    _write_tensors(folder / place, tensors)
    if name not in ("adapter", "face_encoder"):  # their shapes are all in their tensors
        _write_json(folder / place.parent / "config.json", net.config.to_config())
    return card.Row(
        component=component.title,
        file=place,
        parameters=sum(array.size for array in tensors.values()),
        dtypes=sorted({array.dtype.name for array in tensors.values()}),
    )


def _arrays(name: str, net: Any, dtype: DTypeLike | None) -> Arrays:
    """The net's tensors under their torch names."""
    tensors = dict(engine.dump(net, COMPONENTS[name].table(net.config)))
    if name == "adapter" and net.config.alpha is not None:
        # None of the files below has a place for alpha: they all mean a scale of 1.
        scale = net.config.alpha / net.config.rank
        tensors |= {
            key: (array.astype(np.float32) * scale).astype(array.dtype)
            for key, array in tensors.items()
            if key.endswith("_lora.up.weight")
        }
    if dtype is None:
        return tensors
    return {
        key: array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array
        for key, array in tensors.items()
    }


def _peft_names(tensors: Arrays, adapter: IdAdapter) -> Arrays:
    """The adapter's LoRA under the names that `load_lora_weights` takes."""
    ends = {"down": "lora_A", "up": "lora_B"}
    return {
        f"unet.{layer.path}.{'to_out.0' if name == 'out' else f'to_{name}'}.{peft}.weight": tensors[
            f"ip_adapter.{i}.to_{name}_lora.{end}.weight"
        ]
        for i, layer in enumerate(adapter.config.layers)
        for name in ("q", "k", "v", "out")
        for end, peft in ends.items()
    }


def _write_upstream(path: Path, model: Model, dtype: DTypeLike | None) -> None:
    """A torch zip of plain tensors, in three dictionaries."""
    try:
        import torch
    except ImportError as e:
        raise UserError("model.bin needs torch: pip install 'fmv2[torch]'") from e

    def tensor(array: np.ndarray):
        # Through bytes, since torch does not know NumPy's bfloat16.
        flat = torch.from_numpy(array.reshape(-1).view(np.uint8).copy())
        return flat.view(getattr(torch, array.dtype.name)).reshape(array.shape)

    tree: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}, "controlnet": {}}
    for key, array in _arrays("adapter", model.adapter, dtype).items():
        group, _, name = key.partition(".")
        tree[group][name] = tensor(array)
    for key, array in _arrays("shadingnet", model.shadingnet, dtype).items():
        tree["controlnet"][key] = tensor(array)
    torch.save(tree, path)


def _model_index(model: Model) -> dict[str, Any]:
    """What stock diffusers reads first; what Face-MakeUpV2 adds is not named there."""
    classes = {
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    nothing = [None, None]
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "feature_extractor": nothing,
        "requires_safety_checker": False,
        "safety_checker": nothing,
        "scheduler": ["diffusers", model.scheduler["_class_name"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        **{name: found if name in model.nets() else nothing for name, found in classes.items()},
    }


def _write_tensors(path: Path, tensors: Arrays) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})  # transformers refuses files without it


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
