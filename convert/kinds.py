"""What a path is, told by the names of the tensors in it and never by its own name.

Each kind's names are brought to those of our weight tables: adapters of any source to
`image_proj.*` and `ip_adapter.{i}.*`, where i counts attention layers down, up, middle, self before
cross.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from convert.sources import Tensors, open_file, open_folder, safetensors_metadata
from fmv2.assets import TINY
from fmv2.errors import UserError
from fmv2.face.head import is_head

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """One component as a source holds it: tensors, and `config.json` where the source has one."""

    tensors: Tensors
    config: Config | None = None


@dataclasses.dataclass(frozen=True)
class Base:
    """What a Stable Diffusion folder holds beside its nets."""

    tokenizer: Path
    """The folder of its files."""
    scheduler: Config


EMBEDDED = Base(
    TINY / "tokenizer",
    {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
)
"""What a model begins with that is trained from nothing: the embedded default's tokenizer, and the
noise of Stable Diffusion, but the velocity predicted. The error of the noise itself all but ignores
what a picture is of, which is decided where nearly all is noise: a small model had not learnt it in
a thousand steps, nor to listen to its text."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What a path holds. Nothing but names, shapes and dtypes has been read yet."""

    path: Path
    kind: str
    parts: Mapping[str, Part]
    """By component: unet, vae, text_encoder, image_encoder, face_encoder, coefficient_encoder,
    shadingnet, adapter; or lora, which is a part of an adapter."""
    base: Base | None = None
    head: Path | None = None
    """The folder of a 3D head, see `fmv2.face.head`."""
    unknown: tuple[str, ...] = ()
    """Names of tensors that belong to no component."""
    notes: tuple[str, ...] = ()
    """What is left out, and what cannot be told."""


# Names that no other component has; the first that has either. Two, so that a file which lacks one
# is still known for what it is, and the lack is reported.
_SIGNS = {
    "shadingnet": (
        "ControlNet",
        "controlnet_cond_embedding.conv_in.weight",
        "controlnet_mid_block.weight",
    ),
    "unet": ("U-Net", "conv_norm_out.weight", "up_blocks.0.resnets.0.conv1.weight"),
    "vae": ("VAE", "encoder.conv_in.weight", "decoder.conv_in.weight"),
    "image_encoder": (
        "CLIP image encoder",
        "vision_model.embeddings.class_embedding",
        "visual_projection.weight",
    ),
    "face_encoder": ("ArcFace IResNet", "layer1.0.prelu.weight", "layer4.0.prelu.weight"),
    "coefficient_encoder": ("DECA encoder", "encoder.layer1.0.conv3.weight", "layers.2.weight"),
}

_NETS = ("unet", "vae", "text_encoder")
_REQUIRED = (*_NETS, "tokenizer", "scheduler")
_OPTIONAL = ("image_encoder", "shadingnet", "ip_adapter", "face_encoder", "coefficient_encoder")
# What a Stable Diffusion folder may hold that plays no part in making faces.
_NEEDLESS = ("safety_checker", "feature_extractor")


def identify(path: Path) -> Source:
    """What the path is.

    Raises:
      UserError: it does not exist, is corrupt, or is of a kind that is unknown or cannot serve.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return _by_names(path, open_file(path), path.parent / "config.json")
    if (path / "model_index.json").is_file():
        return _diffusers_folder(path)
    if is_head(path):
        return Source(path, "3D head", {}, head=path)
    return _by_names(path, open_folder(path), path / "config.json")


def _diffusers_folder(path: Path) -> Source:
    entries = {
        name: entry
        for name, entry in read_json(path / "model_index.json").items()
        if isinstance(entry, list)
    }
    index = {name: entry[1] for name, entry in entries.items() if entry[0]}
    # A model in the making says itself which nets it does not have yet.
    to_come = [name for name in _NETS if name in entries and name not in index]
    faults = [
        f"{name}/ is missing"
        for name in _REQUIRED
        if not (path / name).is_dir() and name not in to_come
    ]
    faults += [
        f"no place for component {name} ({kind})"
        for name, kind in index.items()
        if name not in (*_REQUIRED, *_OPTIONAL, *_NEEDLESS)
    ]
    if faults:
        raise UserError(f"{path}: not a Stable Diffusion 1.x or 2.x folder: " + "; ".join(faults))
    parts: dict[str, Part] = {}
    unknown: list[str] = []
    for folder in (*_NETS, *_OPTIONAL):
        if not (path / folder).is_dir():
            continue
        component = "adapter" if folder == "ip_adapter" else folder
        source = identify(_only_file(path / folder) if component == "adapter" else path / folder)
        if list(source.parts) != [component]:
            raise UserError(
                f"{source.path}: is a {source.kind}, which does not belong in {folder}/"
            )
        parts |= source.parts
        unknown += source.unknown
    left_out = [name for name in _NEEDLESS if name in index]
    kind = "Face-MakeUpV2 folder" if "adapter" in parts else "Stable Diffusion folder"
    return Source(
        path,
        f"{kind} without {', '.join(to_come)}" if to_come else kind,
        parts,
        base=Base(path / "tokenizer", read_json(path / "scheduler" / "scheduler_config.json")),
        head=path / "head" if (path / "head").is_dir() else None,
        unknown=tuple(unknown),
        notes=(f"{' and '.join(left_out)} left out",) if left_out else (),
    )


def _by_names(path: Path, tensors: Tensors, config_file: Path) -> Source:
    for has, read in _BUNDLES:
        if any(re.match(has, name) for name in tensors):
            return read(path, tensors, config_file)
    for component, (kind, *signs) in _SIGNS.items():
        if any(sign in tensors for sign in signs):
            return Source(path, kind, {component: Part(tensors, _config(config_file))})
    if any(name.endswith("embeddings.token_embedding.weight") for name in tensors):
        return Source(
            path, "CLIP text encoder", {"text_encoder": Part(tensors, _config(config_file))}
        )
    raise UserError(f"{path}: unknown kind of checkpoint: it holds {_some(tensors)}")


def _ip_adapter(path: Path, tensors: Tensors, _: Path) -> Source:
    """Upstream's `model.bin`, and the files of IP-Adapter-FaceID-Plus."""
    if not any(name.startswith("image_proj.perceiver_resampler.") for name in tensors):
        _refuse_adapter(path, tensors)
    groups, unknown = _regroup(
        tensors,
        (
            (r"((?:image_proj|ip_adapter)\..+)", "adapter"),
            (r"controlnet\.(.+)", "shadingnet"),
        ),
    )
    if "shadingnet" in groups:
        kind, notes = "Face-MakeUpV2 model.bin", ()
    else:
        kind = "IP-Adapter-FaceID-PlusV2"
        notes = (
            "FaceID-Plus and PlusV2 hold the same tensors: taken for PlusV2, with the shortcut",
        )
    return Source(path, kind, _parts(groups), unknown=unknown, notes=notes)


def _refuse_adapter(path: Path, tensors: Tensors) -> NoReturn:
    kinds = {
        "image_proj.proj.0.weight": "IP-Adapter-FaceID, without the resampler for CLIP's features",
        "image_proj.latents": "IP-Adapter-Plus, without the projection of the identity",
        "image_proj.proj.weight": "IP-Adapter, without the projection of the identity",
    }
    found = next((kind for sign, kind in kinds.items() if sign in tensors), _some(tensors))
    raise UserError(f"{path}: refused: expected an IP-Adapter-FaceID-PlusV2 adapter, found {found}")


def _accelerate(path: Path, tensors: Tensors, _: Path) -> Source:
    """A checkpoint of upstream's trainer; pickles hold each adapter tensor under two names."""
    index = _attention_order(
        found[1] for name in tensors if (found := re.match(r"unet\.(.+)\.processor\.", name))
    )
    renamed = {}
    for name, ref in tensors.items():
        if found := re.fullmatch(r"unet\.(.+)\.processor\.(.+)", name):
            name = f"ip_adapter.{index[found[1]]}.{found[2]}"
        elif found := re.fullmatch(r"adapter_modules\.(.+)", name):
            name = f"ip_adapter.{found[1]}"
        renamed[name] = ref
    groups, unknown = _regroup(
        renamed,
        (
            (r"(ip_adapter\..+)", "adapter"),
            (r"image_proj_model\.(.+)", "image_proj"),
            (r"con(?:tor|tro)lnet\.(.+)", "shadingnet"),  # upstream spells it the first way
            (r"unet\.(.+)", "unet"),
        ),
    )
    projector = {f"image_proj.{name}": ref for name, ref in groups.pop("image_proj", {}).items()}
    groups["adapter"] = {**groups.get("adapter", {}), **projector}
    return Source(
        path, "Face-MakeUpV2 training checkpoint (Accelerate)", _parts(groups), unknown=unknown
    )


def _peft_lora(path: Path, tensors: Tensors, _: Path) -> Source:
    """A LoRA of the attention layers; a file that does not tell alpha means a scale of 1."""
    pattern = re.compile(r"unet\.(.+)\.to_(q|k|v|out)(?:\.0)?\.lora_(A|B)\.weight")
    found = {name: pattern.fullmatch(name) for name in tensors}
    index = _attention_order(match[1] for match in found.values() if match)
    ends = {"A": "down", "B": "up"}
    lora = {
        f"ip_adapter.{index[match[1]]}.to_{match[2]}_lora.{ends[match[3]]}.weight": tensors[name]
        for name, match in found.items()
        if match
    }
    settings = json.loads(safetensors_metadata(path).get("lora_adapter_metadata", "{}"))
    alpha, rank = settings.get("unet.lora_alpha"), settings.get("unet.r")
    if alpha != rank:
        raise UserError(
            f"{path}: its LoRA has alpha {alpha} and rank {rank}: fold the scale into the weights,"
            " only alpha = rank is read"
        )
    unknown = tuple(name for name, match in found.items() if not match)
    return Source(path, "LoRA (peft)", {"lora": Part(lora)}, unknown=unknown)


def _whole_clip(path: Path, tensors: Tensors, config_file: Path) -> Source:
    """CLIP with both halves, as image encoders are often published; the image half is taken."""
    halves = ("vision_model.", "visual_projection.")
    image = {name: ref for name, ref in tensors.items() if name.startswith(halves)}
    parts = {"image_encoder": Part(image, _config(config_file))}
    return Source(path, "CLIP", parts, notes=("the text half is left out",))


def _deca(path: Path, tensors: Tensors, _: Path) -> Source:
    """`deca_model.tar`: of its nets only the coarse encoder is taken."""
    encoder = {
        name.removeprefix("E_flame."): ref
        for name, ref in tensors.items()
        if name.startswith("E_flame.")
    }
    notes = ("DECA's details are left out",) if len(encoder) < len(tensors) else ()
    return Source(path, "DECA", {"coefficient_encoder": Part(encoder)}, notes=notes)


def _single_file(path: Path, *_) -> NoReturn:
    raise UserError(
        f"{path}: refused: a Stable Diffusion checkpoint in its original form; make a folder of it"
        " with diffusers: StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)"
    )


# What is told by a name that begins so, the first that fits.
_BUNDLES: tuple[tuple[str, Callable[[Path, Tensors, Path], Source]], ...] = (
    (r"(image_proj|ip_adapter)\.", _ip_adapter),
    (r"unet\..+\.processor\.|adapter_modules\.|contorlnet\.", _accelerate),
    (r".+\.lora_A\.weight$", _peft_lora),
    (r"model\.diffusion_model\.", _single_file),
    (r"logit_scale$", _whole_clip),
    (r"E_flame\.", _deca),
)


def _attention_order(paths: Iterable[str]) -> dict[str, int]:
    """The number of each attention layer, from the paths of all of them."""

    def key(path: str):
        return ("down_blocks", "up_blocks", "mid_block").index(path.split(".")[0]), [
            int(number) for number in re.findall(r"\d+", path)
        ]

    return {path: i for i, path in enumerate(sorted(set(paths), key=key))}


def _regroup(
    tensors: Tensors, rules: Iterable[tuple[str, str]]
) -> tuple[dict[str, Tensors], tuple[str, ...]]:
    """Tensors by the group of the first pattern that fits, under what it captures; and the rest."""
    groups: dict[str, Tensors] = {}
    unknown = []
    for name, ref in tensors.items():
        for pattern, group in rules:
            if found := re.fullmatch(pattern, name):
                groups.setdefault(group, {})[found[1]] = ref
                break
        else:
            unknown.append(name)
    return groups, tuple(unknown)


def _parts(groups: Mapping[str, Tensors]) -> dict[str, Part]:
    return {name: Part(tensors) for name, tensors in groups.items()}


def _only_file(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    if len(files) != 1:
        raise UserError(
            f"{folder}: expected one adapter file, found {[path.name for path in files]}"
        )
    return files[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a UserError."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read as JSON: {e}") from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def _config(path: Path) -> Config | None:
    return read_json(path) if path.is_file() else None


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
