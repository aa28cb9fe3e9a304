"""From the picture of a face to the conditions of new ones."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from fmv2.conditions import Change, Conditions, change, draw_head
from fmv2.errors import UserError
from fmv2.face.align import CROP, crop_face
from fmv2.face.head import Head
from fmv2.inputs import face_features, face_identity, shading_input
from fmv2.models.coefficient_encoder import COUNTS, Coefficients
from fmv2.nets import Nets
from fmv2.pictures import Picture, Window, read_picture, resize, square

_FINER = 2
"""The face is cut from a picture so many times as large as what will be drawn."""
_ADD = "add it with fmv2 convert from-diffusers"


class Preparation:
    """A model's eyes. Faces are looked at a few at a time, one on each device.

    Args:
      nets: of the model.
      head: whose coefficients the coefficient encoder tells.
    """

    def __init__(self, nets: Nets, head: Head | None):
        self._nets = nets
        self._head = head
        self._estimate = nets.jit(_estimate, "coefficient_encoder")
        self._embed = nets.jit(_embed, "face_encoder", "image_encoder")

    def __call__(
        self,
        faces: Sequence[Picture],
        shadings: Sequence[Picture | None],
        landmarks: Sequence[Any],
        *,
        size: int,
        changes: tuple[Change, Change, Change],
        faults: Sequence[str] = (),
    ) -> list[Conditions]:
        """Conditions of each face; arguments as of `FaceMakeUp.prepare`, of equal lengths.

        Args:
          changes: of expression, pose and light.
          faults: what is known to be wrong.

        Raises:
          UserError: all that is wrong with pictures, changes and the model.
        """
        faults = [*faults, *self._lacks(shadings, landmarks, changes)]
        pictures = _read(faces, faults)
        maps = _read([x for x in shadings if x is not None], faults)
        points = [_points(x, faults) for x in landmarks]
        faults += change(_NOTHING, *changes)[1]
        if faults:
            raise UserError("; ".join(dict.fromkeys(faults)))
        drawn = iter(maps)
        given = [None if x is None else next(drawn) for x in shadings]
        made: list[Conditions] = []
        for first in range(0, len(faces), self._nets.ways):
            some = slice(first, first + self._nets.ways)
            made += self._some(pictures[some], given[some], points[some], size, changes)
        return made

    def _some(self, pictures, shadings, landmarks, size: int, changes) -> list[Conditions]:
        """Of no more faces than there are devices."""
        filled = [*pictures, *[pictures[-1]] * (self._nets.ways - len(pictures))]
        blind = any(x is None for x in shadings)
        found = None
        if blind or any(x is None for x in landmarks):
            found = self._coefficients(filled)
        faces = self._faces(filled, landmarks, found, size)
        identities, features = jax.device_get(self._embed(self._nets.share(faces)))
        made = [
            Conditions(
                identity=identities[i],
                features=features[i],
                face=faces[i],
                shading=np.zeros((0, 0, 3), np.uint8) if map is None else square(map, size),
            )
            for i, map in enumerate(shadings)
        ]
        if found is None or not blind:
            return made
        heads = [change(one, *changes)[0] for one in _each(found)]
        stacked = jax.tree.map(lambda *x: np.stack(x), *heads)
        maps, points = jax.device_get(_draw(self._head, self._nets.share(stacked), size))
        return [
            one
            if shadings[i] is not None
            else dataclasses.replace(
                one, shading=maps[i], landmarks=points[i], coefficients=heads[i]
            )
            for i, one in enumerate(made)
        ]

    def _coefficients(self, pictures) -> Coefficients:
        """Of the heads, in NumPy: the camera's crop is the centred square."""
        side = self._nets["coefficient_encoder"].config.image_size
        crops = np.stack([square(picture, side) for picture in pictures])
        return jax.device_get(self._estimate(self._nets.share(crops)))

    def _faces(self, pictures, landmarks, found, size: int) -> UInt8[np.ndarray, "b a a 3"]:
        """Aligned by the landmarks that are given, else by those of the head that was found."""
        side = _FINER * size
        points = np.zeros((len(pictures), 5, 2), np.float32)
        if found is not None:
            points = np.array(_draw(self._head, self._nets.share(found), size)[1])
            points = (points + 0.5) * _FINER - 0.5
        for i, own in enumerate(landmarks):
            if own is not None:
                height, width, _ = pictures[i].shape
                points[i] = Window.of(height, width, side).landmarks(own)
        large = np.stack([square(picture, side) for picture in pictures])
        wanted = self._nets["image_encoder"].config.image_size
        crop = CROP if wanted <= CROP else 2 * CROP
        faces = _crop(self._nets.share(large), self._nets.share(points), crop)
        return np.stack([resize(face, wanted) for face in np.asarray(faces)])

    def _lacks(self, shadings, landmarks, changes) -> list[str]:
        """What the model lacks for this, and how to go without."""
        nets, faults = self._nets, []
        blind = any(x is None for x in shadings)
        lost = any(x is None for x in landmarks)
        mends = {
            "adapter": _ADD,
            "image_encoder": _ADD,
            "face_encoder": f"{_ADD}: it sees the identity",
            "coefficient_encoder": f"{_ADD}, or give shading_image and landmarks",
        }
        needed = ["adapter", "image_encoder", "face_encoder"]
        needed += ["coefficient_encoder"] * (blind or lost)
        faults += [f"the model has no {name}: {mends[name]}" for name in needed if name not in nets]
        if (blind or lost) and self._head is None:
            faults.append(f"the model has no head: {mends['coefficient_encoder']}")
        if not blind and any(x is not None for x in changes):
            faults.append("expression, pose and light change nothing in a given shading_image")
        if "adapter" in nets and "face_encoder" in nets:
            told, taken = nets["face_encoder"].config, nets["adapter"].config
            if told.embedding_size != taken.id_dim:
                faults.append(
                    f"the face encoder gives {told.embedding_size} numbers, but the adapter takes"
                    f" {taken.id_dim}: it was trained with another, which is to be added in its"
                    " place"
                )
        if "adapter" in nets and "image_encoder" in nets:
            told, taken = nets["image_encoder"].config, nets["adapter"].config
            if told.hidden_size != taken.face_dim:
                faults.append(
                    f"the image encoder is {told.hidden_size} wide, but the adapter takes"
                    f" {taken.face_dim}: it was trained with another"
                )
        return faults


_NOTHING = Coefficients(*(np.zeros(n, np.float32) for n in COUNTS[:-1]), np.zeros((9, 3)))  # type: ignore[arg-type]
"""A head to try changes on, so that what is wrong with them is told with all else."""


def _read(sources: Sequence[Picture], faults: list[str]) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The pictures that can be read; of the others, why not."""
    found = []
    for source in sources:
        try:
            found.append(read_picture(source))
        except UserError as error:
            faults.append(str(error))
    return found


def _points(given: Any, faults: list[str]) -> Float[np.ndarray, "5 2"] | None:
    if given is None:
        return None
    points = np.asarray(given, np.float32)
    if points.shape == (5, 2) and np.isfinite(points).all():
        return points
    faults.append(f"landmarks of shape {points.shape}: expected (5, 2), finite, in ArcFace's order")
    return None


def _each(found: Coefficients) -> list[Coefficients]:
    return [Coefficients(*(x[i] for x in found)) for i in range(len(found.shape))]


def _estimate(nets, crops):
    return nets["coefficient_encoder"](shading_input(crops))


def _embed(nets, faces):
    identities = face_identity(nets["face_encoder"], faces)
    return identities, face_features(nets["image_encoder"], faces)


_draw = jax.jit(draw_head, static_argnums=2)


@partial(jax.jit, static_argnums=2)
def _crop(pictures, points, size: int):
    crop = jax.vmap(crop_face, in_axes=(0, 0, None))
    return jnp.round(crop(pictures.astype(jnp.float32), points, size)).astype(jnp.uint8)
