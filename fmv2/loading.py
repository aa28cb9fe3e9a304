"""A model's folder, here or on the Hugging Face hub, read for making pictures."""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from convert import folder
from fmv2.errors import UserError

_EXACT = ("face_encoder", "coefficient_encoder")
"""Whose batch norms are worth their precision."""
_WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors", "*/*.npz"]
_UNWANTED = ["*.fp16.*", "*.non_ema.*", "safety_checker/*"]


def read_model(name: str | Path, dtype: DTypeLike) -> folder.Model:
    """The model of a folder, or of a repository OWNER/NAME.

    Args:
      dtype: of the weights, but those of nets with batch norms, which are float32.
    Raises:
      UserError: it is not there, no model, or damaged; all that does not fit.
    """
    assembly = folder.assemble([_folder(name)])
    exact = {k: part for k, part in assembly.parts.items() if k in _EXACT}
    others = {k: part for k, part in assembly.parts.items() if k not in _EXACT}
    model = folder.read(dataclasses.replace(assembly, parts=others), dtype=dtype)
    precise = folder.read(dataclasses.replace(assembly, parts=exact, head=None), dtype=jnp.float32)
    return dataclasses.replace(model, **{k: getattr(precise, k) for k in exact})


def _folder(name: str | Path) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name}: a file: name the folder of a model")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise UserError(f"{name}: no such folder")
    from huggingface_hub import snapshot_download  # takes a while, and is seldom needed
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(str(name), allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OSError,
        ValueError,
    ) as e:
        why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(
            f"{name}: no such folder, nor a repository that the Hugging Face hub gives: {why}"
        ) from e
