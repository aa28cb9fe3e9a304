"""Tensors in files, read one at a time: safetensors, torch's pickles, ArcFace as ONNX.

A file's form is told by its first bytes, never by its name. Opening reads names, shapes and dtypes
alone; a tensor's bytes are read at their offset when asked for, and not through a mapping of the
file: mapped pages stay with the process, and a checkpoint would be in memory twice.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from convert.engine import TensorRef
from fmv2.errors import UserError

Tensors = dict[str, TensorRef]

_WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)

_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def open_file(path: Path) -> Tensors:
    """The tensors of one weight file, by name. Nested dictionaries become dotted names.

    Raises:
      UserError: no weight file, or a corrupt one; a pickle that holds anything but tensors.
    """
    with _open_binary(path) as file:
        head = file.read(9)
    if head[8:9] == b"{":
        return open_safetensors(path)
    if head[:2] in (b"PK", b"\x80\x02"):
        return open_pickle(path)
    if head[:1] == b"\x08":  # the tag of ModelProto.ir_version, which every exporter writes first
        from convert.arcface_onnx import open_arcface

        return open_arcface(path)
    raise UserError(
        f"{path}: unknown kind of file: expected safetensors, a torch pickle or an ONNX model"
    )


def open_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file."""
    try:
        with safe_open(path, framework="numpy"):  # checks the header against the file's length
            pass
    except SafetensorError as e:
        raise UserError(f"{path}: truncated or corrupt safetensors file: {e}") from e
    with _open_binary(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    unread = sorted({e["dtype"] for e in header.values()} - set(_SAFETENSORS_DTYPES))
    if unread:
        raise UserError(f"{path}: dtypes {unread} are not read, only {sorted(_SAFETENSORS_DTYPES)}")
    return {
        name: _stored(
            path,
            8 + length + entry["data_offsets"][0],
            tuple(entry["shape"]),
            np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]),
        )
        for name, entry in header.items()
    }


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The free text in a safetensors header; empty for any other file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def open_pickle(path: Path) -> Tensors:
    """The tensors of what `torch.save` wrote; foreign classes are refused, not unpickled.

    A legacy file (before torch 1.6) gives no offsets: it is read whole.
    """
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f"{path} is a torch pickle: install torch to read it (pip install 'fmv2[torch]')"
        ) from e

    try:
        tree = torch.load(path, map_location="meta", weights_only=True)
        flat = _flatten(tree, path)
        if any(_checkpoint_offset(tensor) is None for tensor in flat.values()):
            flat = _flatten(torch.load(path, map_location="cpu", weights_only=True), path)
            return {name: _in_memory_of_torch(tensor) for name, tensor in flat.items()}
    except UserError:
        raise
    except Exception as e:  # torch raises many types for a bad file
        foreign = _foreign_classes(path, e)
        if foreign:
            raise UserError(
                f"{path}: refused: the pickle holds foreign classes {foreign}: save its tensors"
                " alone, best as safetensors"
            ) from e
        raise UserError(
            f"{path}: truncated, corrupt or not written by torch.save: {str(e).splitlines()[0]}"
        ) from e
    return {name: _stored_by_torch(path, tensor) for name, tensor in flat.items()}


def open_folder(folder: Path) -> Tensors:
    """The weights of a component's folder or of an Accelerate checkpoint, whole or sharded.

    Plain files come before variants such as `fp16`, safetensors before pickles.

    Raises:
      UserError: no weights, several variants and no plain file, or a shard that is missing.
    """
    for name in _WEIGHT_FILES:
        for path in (folder / name, folder / f"{name}.index.json"):
            if path.is_file():
                return _open_whole_or_index(path)
    for name in _WEIGHT_FILES:
        stem, suffix = name.rsplit(".", 1)
        found = sorted([*folder.glob(f"{stem}.*.{suffix}"), *folder.glob(f"{name}.index.*.json")])
        variants = [path for path in found if not re.search(r"-\d+-of-\d+", path.name)]
        if len(variants) > 1:
            names = [path.name for path in variants]
            raise UserError(f"{folder}: {names} are all variants: leave one, or add {name}")
        if variants:
            return _open_whole_or_index(variants[0])
    raise UserError(
        f"{folder}: no weights: expected one of {list(_WEIGHT_FILES)}, whole or sharded"
    )


def _open_whole_or_index(path: Path) -> Tensors:
    return open_sharded(path) if path.suffix == ".json" else open_file(path)


def open_sharded(index: Path) -> Tensors:
    """The tensors of a checkpoint in several files, by its index."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError) as e:
        raise UserError(f"{index}: not a sharded checkpoint's index: {e!r}") from e
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index}: shards {missing} are missing")
    shards = {name: open_file(index.parent / name) for name in names}
    absent = [key for key, name in weight_map.items() if key not in shards[name]]
    if absent:
        raise UserError(f"{index}: the shards lack {absent}")
    return {key: ref for shard in shards.values() for key, ref in shard.items()}


def array_ref(array: np.ndarray) -> TensorRef:
    """A tensor that is in memory already."""
    return TensorRef(array.shape, array.dtype, lambda: array)


def _stored(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> TensorRef:
    """A tensor that lies contiguously in a file."""

    def read() -> np.ndarray:
        return np.fromfile(path, dtype, math.prod(shape), offset=offset).reshape(shape)

    return TensorRef(shape, dtype, read)


def _stored_by_torch(path: Path, tensor: Any) -> TensorRef:
    """A tensor of a torch zip, perhaps a strided view of its storage; `tensor` has no data."""
    dtype = _numpy_dtype(tensor)
    shape, strides = tuple(tensor.shape), [n * dtype.itemsize for n in tensor.stride()]
    offset = _checkpoint_offset(tensor) + tensor.storage_offset() * dtype.itemsize
    span = 1 + sum((n - 1) * stride for n, stride in zip(shape, tensor.stride(), strict=True))

    def read() -> np.ndarray:
        flat = np.fromfile(path, dtype, span if tensor.numel() else 0, offset=offset)
        return np.lib.stride_tricks.as_strided(flat, shape, strides)

    return TensorRef(shape, dtype, read)


def _in_memory_of_torch(tensor: Any) -> TensorRef:
    import torch

    dtype = _numpy_dtype(tensor)
    # Through bytes, since torch does not know NumPy's bfloat16.
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return array_ref(flat.view(dtype).reshape(tuple(tensor.shape)))


def _checkpoint_offset(tensor: Any) -> int | None:
    # Set by torch.load(map_location="meta") on storages of zip files, for this very use.
    return getattr(tensor.untyped_storage(), "_checkpoint_offset", None)


def _numpy_dtype(tensor: Any) -> np.dtype:
    return np.dtype(str(tensor.dtype).removeprefix("torch."))


def _flatten(tree: Any, path: Path, prefix: str = "") -> dict[str, Any]:
    """The tensors of nested dictionaries under dotted names."""
    import torch

    if isinstance(tree, torch.Tensor):
        return {prefix.removesuffix("."): tree}
    if not isinstance(tree, Mapping):
        where, kind = prefix.removesuffix(".") or "the pickle", type(tree).__name__
        raise UserError(f"{path}: {where} is a {kind}, expected tensors and dictionaries of them")
    return {
        name: tensor
        for key, child in tree.items()
        for name, tensor in _flatten(child, path, f"{prefix}{key}.").items()
    }


def _foreign_classes(path: Path, error: Exception) -> list[str]:
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError):  # a legacy file, where torch's error alone names a class
        return re.findall(r"GLOBAL (\S+)", str(error))[:1]


def _open_binary(path: Path):
    try:
        return path.open("rb")
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from e
