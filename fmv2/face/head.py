"""A head as a model folder keeps it: FLAME's arrays, and what of them is drawn.

    head/head.npz

NumPy's own compressed archive, since nearly all directions are zero nearly everywhere; no pickle is
in it, and none is read.
"""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmv2.errors import UserError
from fmv2.face.flame import HeadModel, skin, triangles_within
from fmv2.face.flame_file import load_flame, load_flame_masks, load_landmarks
from fmv2.face.labels import NUMBER
from fmv2.face.render import Rendering, Surface, render

FILE = "head.npz"
FLAME_FILES = ("generic_model.pkl", "FLAME_masks.pkl", "landmark_embedding.npy")
"""Of FLAME's authors and DECA's, under their licences: brought by the user."""

_ROOT, _JAW = 0, 2  # among FLAME's joints
_MODEL = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "faces")
_SURFACE = ("faces", "labels", "landmark_corners", "landmark_barycentrics")
_OTHERS = ("parents", "expression_offset")
_NAMES = (*(f"model.{n}" for n in _MODEL), *(f"surface.{n}" for n in _SURFACE), *_OTHERS)


class Head(NamedTuple):
    """A head model, and what of it shading maps and landmarks are made of."""

    model: HeadModel
    surface: Surface


def render_head(
    head: Head,
    shape: Float[Array, "s"],
    expression: Float[Array, "e"],
    pose: Float[Array, "6"],
    camera: Float[Array, "3"],
    light: Float[Array, "9 3"],
    *,
    size: int,
) -> Rendering:
    """The head that DECA's coefficients tell of, in a square picture that is the camera's crop.

    Args:
      head: the model, and what of it is drawn.
      shape: identity, as for `fmv2.face.flame.skin`.
      expression: likewise.
      pose: head rotation, then the jaw's: axis times angle in radians.
      camera: see `fmv2.face.camera.project`.
      light: see `fmv2.face.shading.shade`.
      size: pixels of the picture's side.
    """
    joints = jnp.zeros((len(head.model.parents), 3))
    joints = joints.at[_ROOT].set(pose[:3]).at[_JAW].set(pose[3:])
    vertices = skin(head.model, shape, expression, joints)
    return render(vertices, head.surface, camera, light, size=(size, size))


def is_head(folder: Path) -> bool:
    """Whether `load_head` is meant to read this folder."""
    return (folder / FILE).is_file() or (folder / FLAME_FILES[0]).is_file()


def load_head(folder: Path) -> Head:
    """The head in a folder: `head.npz`, or FLAME's own three files.

    Raises:
      UserError: files that are missing, broken, or do not go together.
    """
    return _load_archive(folder / FILE) if (folder / FILE).is_file() else _load_flame(folder)


def save_head(head: Head, folder: Path) -> None:
    """Writes `head.npz` into a folder that is there; `load_head` gives the same bits."""
    arrays: dict[str, Any] = {f"model.{name}": getattr(head.model, name) for name in _MODEL}
    arrays |= {f"surface.{name}": getattr(head.surface, name) for name in _SURFACE}
    arrays |= {name: getattr(head.model, name) for name in _OTHERS}
    packed = {k: np.asarray(v) for k, v in arrays.items()}
    np.savez_compressed(folder / FILE, allow_pickle=False, **packed)


def _load_archive(path: Path) -> Head:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [name for name in _NAMES if name not in archive]:
                raise UserError(f"{path}: no head: {', '.join(missing)} missing")
            arrays = {name: archive[name] for name in _NAMES}
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise UserError(f"{path}: truncated, corrupt or no archive of NumPy's: {e}") from e
    model = HeadModel(
        **{name: jnp.asarray(arrays[f"model.{name}"]) for name in _MODEL},
        parents=tuple(map(int, arrays["parents"])),
        expression_offset=int(arrays["expression_offset"]),
    )
    return Head(
        model, Surface(**{name: jnp.asarray(arrays[f"surface.{name}"]) for name in _SURFACE})
    )


def _load_flame(folder: Path) -> Head:
    if missing := [name for name in FLAME_FILES if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: a head needs {', '.join(missing)} too: FLAME's site has the first two of"
            f" {', '.join(FLAME_FILES)}, DECA's code the last"
        )
    model_file, masks_file, landmarks_file = (folder / name for name in FLAME_FILES)
    model, masks = load_flame(model_file), load_flame_masks(masks_file)
    if "face" not in masks:
        raise UserError(f"{masks_file}: has no region face, only {', '.join(sorted(masks))}")
    triangles, barycentrics = load_landmarks(landmarks_file)
    if triangles.max() >= len(model.faces):
        raise UserError(
            f"{landmarks_file}: names triangle {triangles.max()}, but {model_file.name} has"
            f" {len(model.faces)}: they belong to different heads"
        )
    faces = model.faces[triangles_within(model.faces, jnp.asarray(masks["face"]))]
    surface = Surface(
        faces=faces,
        labels=jnp.full(len(faces), NUMBER["skin"], jnp.int32),
        landmark_corners=model.faces[triangles],
        landmark_barycentrics=jnp.asarray(barycentrics, jnp.float32),
    )
    return Head(model, surface)
