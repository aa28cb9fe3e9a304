"""Reading FLAME's own files, `generic_model.pkl` and `FLAME_masks.pkl`, without running them, and
the `landmark_embedding.npy` that DECA's code has beside them.

They are Python 2 pickles of chumpy and SciPy objects. Neither package is needed, and nothing in the
file is executed: a closed list of names is understood, whatever else it asks for is refused.
"""

import pickle
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fmv2.errors import UserError
from fmv2.face.flame import HeadModel

_IDENTITIES, _EXPRESSIONS, _JOINTS = 300, 100, 5
_LANDMARKS = 68

# A number must fit; a letter stands for any number, but everywhere for the same.
_SHAPES = {
    "v_template": ("v", 3),
    "shapedirs": ("v", 3, _IDENTITIES + _EXPRESSIONS),
    "posedirs": ("v", 3, 9 * (_JOINTS - 1)),
    "J_regressor": (_JOINTS, "v"),
    "kintree_table": (2, _JOINTS),
    "weights": ("v", _JOINTS),
    "f": ("f", 3),
}
_WHOLE = ("kintree_table", "f")


def load_flame(path: Path) -> HeadModel:
    """The head model in FLAME's `generic_model.pkl` (2017, 2019, 2020 or 2023).

    Raises:
      UserError: no such file, not such a pickle, a class in it that is not on the closed list, or
        arrays that do not make a head: every fault is named.
    """
    fields = _unpickle(path)
    arrays, faults = _arrays(fields, _SHAPES)
    faults += _misfits(arrays)
    if not faults:
        faults += _broken_links(arrays)
    if faults:
        raise UserError(f"{path}: not a FLAME model: " + "; ".join(faults))
    return HeadModel(
        **{
            name: jnp.asarray(arrays[name], jnp.float32)
            for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
        },
        faces=jnp.asarray(arrays["f"], jnp.int32),
        parents=(-1, *map(int, arrays["kintree_table"][0, 1:])),
        expression_offset=_IDENTITIES,
    )


def load_flame_masks(path: Path) -> dict[str, np.ndarray]:
    """The vertices of each named region in `FLAME_masks.pkl`, as int32.

    Raises:
      UserError: as `load_flame`, or a region that is not a list of vertices.
    """
    fields = _unpickle(path)
    arrays, faults = _arrays(fields, fields)
    faults += [
        f"{name} is {array.dtype} {array.shape}, expected a list of vertex numbers"
        for name, array in arrays.items()
        if array.ndim != 1 or array.dtype.kind not in "iu" or (array.size and array.min() < 0)
    ]
    if faults:
        raise UserError(f"{path}: not FLAME's masks: " + "; ".join(faults))
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def load_landmarks(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where iBUG's 68 points lie on FLAME, of DECA's `landmark_embedding.npy`.

    Returns:
      the triangle of each as int32 (68,), and where on it as float32 barycentrics (68, 3).
    Raises:
      UserError: as `load_flame`, or points of another number or kind.
    """
    shapes = {"full_lmk_faces_idx": (_LANDMARKS,), "full_lmk_bary_coords": (_LANDMARKS, 3)}
    fields = _unpickle(path, skip_npy_header=True)
    arrays, faults = _arrays(fields, shapes)
    for name, array in arrays.items():
        if array.shape not in (shapes[name], (1, *shapes[name])):
            faults.append(f"{name} is {array.shape}, expected {(1, *shapes[name])}")
    triangles, barycentrics = (arrays.get(name) for name in shapes)
    if triangles is not None and (triangles.dtype.kind not in "iu" or triangles.min(initial=0) < 0):
        faults.append("full_lmk_faces_idx must be triangle numbers from 0")
    if barycentrics is not None and barycentrics.dtype.kind != "f":
        faults.append(f"full_lmk_bary_coords is {barycentrics.dtype}, expected numbers")
    if faults or triangles is None or barycentrics is None:
        raise UserError(f"{path}: not DECA's landmarks: " + "; ".join(faults))
    return (
        triangles.reshape(_LANDMARKS).astype(np.int32),
        barycentrics.reshape(_LANDMARKS, 3).astype(np.float32),
    )


def _arrays(fields: dict[str, Any], names: Any) -> tuple[dict[str, np.ndarray], list[str]]:
    """The named fields as arrays, and what is wrong with the others."""
    arrays, faults = {}, []
    for name in names:
        if name not in fields:
            faults.append(f"{name} is missing")
            continue
        try:
            arrays[name] = _to_array(fields[name])
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as e:
            faults.append(f"{name} cannot be read: {e}")
    return arrays, faults


def _misfits(arrays: dict[str, np.ndarray]) -> list[str]:
    faults = []
    sizes = {"v": len(template) if (template := arrays.get("v_template")) is not None else "v"}
    for name, array in arrays.items():
        expected = tuple(sizes.get(size, size) for size in _SHAPES[name])
        fits = len(expected) == array.ndim and all(
            isinstance(want, str) or want == size
            for want, size in zip(expected, array.shape, strict=True)
        )
        if not fits:
            faults.append(f"{name} is {array.shape}, expected {expected}")
        elif name in _WHOLE and array.dtype.kind not in "iu":
            faults.append(f"{name} is {array.dtype}, expected whole numbers")
        elif array.dtype.kind not in "fiu":
            faults.append(f"{name} is {array.dtype}, expected numbers")
        elif not np.isfinite(array).all():
            faults.append(f"{name} holds {np.sum(~np.isfinite(array))} values that are not finite")
    return faults


def _broken_links(arrays: dict[str, np.ndarray]) -> list[str]:
    """Triangles and joints that refer to what is not there."""
    faults = []
    vertices, faces = len(arrays["v_template"]), arrays["f"]
    if faces.size and not 0 <= faces.min() <= faces.max() < vertices:
        faults.append(f"f names vertices {faces.min()} to {faces.max()}, of {vertices}")
    # The root's parent is written as -1 or 2³² - 1 and is not looked at.
    parents = arrays["kintree_table"][0, 1:].tolist()
    if not all(0 <= parent < joint for joint, parent in enumerate(parents, 1)):
        faults.append(f"kintree_table hangs joints 1 to 4 on {parents}, expected earlier joints")
    return faults


class _Chumpy:
    """A chumpy object as pickled: attributes alone, no arithmetic."""

    origin: str


class _SparseColumns:
    """SciPy's `csc_matrix` as pickled."""


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list):
        return np.array(value)
    state = getattr(value, "__dict__", {})
    if isinstance(value, _SparseColumns):
        rows, columns = state["_shape"]
        dense = np.zeros((rows, columns))
        column = np.repeat(np.arange(columns), np.diff(state["indptr"]))
        np.add.at(dense, (state["indices"], column), state["data"])
        return dense
    if isinstance(value, _Chumpy) and value.origin == "chumpy.ch.Ch":
        return _to_array(state["x"])
    if isinstance(value, _Chumpy) and value.origin == "chumpy.reordering.Select":
        picked = _to_array(state["a"]).ravel()[_to_array(state["idxs"])]
        return picked.reshape(state.get("preferred_shape", picked.shape))
    kind = value.origin if isinstance(value, _Chumpy) else type(value).__name__
    raise TypeError(f"it is a {kind}, expected an array")


def _rebuilt(kind: type, base: type, state: Any) -> Any:
    """What `copyreg._reconstructor` does in old pickles, for the two classes above alone."""
    if not issubclass(kind, _Chumpy | _SparseColumns):
        raise pickle.UnpicklingError(f"{kind.__name__} cannot be rebuilt")
    return kind()


def _encoded(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a Python 2 pickle."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How Python 3 writes none: `bytes()`. With a number it would fill that much memory."""
    return b""


# NumPy's rebuilding functions are private: taken from objects that name them.
_OF_ARRAY, _OF_SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
_OF_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
_ALLOWED: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "scipy.sparse.csc.csc_matrix": _SparseColumns,
    "scipy.sparse._csc.csc_matrix": _SparseColumns,
    "_codecs.encode": _encoded,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray._reconstruct"] = _OF_ARRAY
    _ALLOWED[f"{_core}.multiarray.scalar"] = _OF_SCALAR
    _ALLOWED[f"{_core}.numeric._frombuffer"] = _OF_BUFFER
for _builtins, _copyreg in (("__builtin__", "copy_reg"), ("builtins", "copyreg")):
    _ALLOWED |= {f"{_builtins}.object": object, f"{_builtins}.set": set}
    _ALLOWED[f"{_builtins}.bytes"] = _no_bytes
    _ALLOWED[f"{_copyreg}._reconstructor"] = _rebuilt


class _Unpickler(pickle.Unpickler):
    """Finds what is on the list, and chumpy's classes as bags of attributes."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        origin = f"{module_name}.{global_name}"
        if origin in _ALLOWED:
            return _ALLOWED[origin]
        if origin.startswith("chumpy."):
            return type(global_name, (_Chumpy,), {"origin": origin})
        raise UserError(
            f"refused: the pickle asks for {origin}; only NumPy arrays, SciPy's csc_matrix and"
            " chumpy objects are read: take the file from FLAME's own site"
        )


def _unpickle(path: Path, *, skip_npy_header: bool = False) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            if skip_npy_header:
                version = np.lib.format.read_magic(file)
                header = np.lib.format.read_array_header_1_0
                (header if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
            fields = _Unpickler(file, encoding="latin1").load()
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from e
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except Exception as e:  # a broken pickle raises nearly any type
        raise UserError(f"{path}: truncated, corrupt or not a pickle: {e}") from e
    if isinstance(fields, np.ndarray) and fields.size == 1:  # how NumPy saves what is no array
        fields = fields.item()
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise UserError(f"{path}: holds a {type(fields).__name__}, expected named arrays")
    return fields
