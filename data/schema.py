"""What a record holds and what a training step eats: every field, once.

The TFDS features, the codec (`data.codec`) and the documentation (`describe`) derive from the two
tables here.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import jax
import numpy as np

from fmv2.tokens import TOKENS

VERSION = "1.0.0"
"""Of the record's form, as TFDS writes it. A major step cannot be read by older code."""

MASKS = 8
"""Phrases of one caption that may have a mask: the bits of a byte."""

CAPTION_KINDS = ("attribute", "emotion")

COEFFICIENTS = {
    "shape": ((100,), "FLAME identity, standard deviations"),
    "expression": ((50,), "FLAME expression, standard deviations"),
    "pose": ((6,), "head rotation, then the jaw's: axis times angle, radians"),
    "camera": ((3,), "scale and translation, see fmv2.face.camera.project"),
    "light": ((9, 3), "spherical harmonics, see fmv2.face.shading.shade"),
}
"""What of a 3D head a record may carry, as DECA's encoder would give it."""


class Field(NamedTuple):
    """One field of a record."""

    form: Literal["text", "jpeg", "png", "array"]
    shape: tuple[int | None, ...]
    """Of the decoded value; None is any size."""
    dtype: str
    meaning: str


def _caption(kind: str) -> dict[str, Field]:
    return {
        f"{kind}_caption": Field("text", (), "str", f"what the picture shows: {kind}"),
        f"{kind}_masks": Field(
            "png", (None, None, 1), "uint8", "bit planes of the picture: bit k is phrase k's region"
        ),
        f"{kind}_tokens": Field(
            "array",
            (MASKS, TOKENS),
            "bool",
            "tokens of phrase k; none past the count",
        ),
        f"{kind}_count": Field("array", (), "int32", f"phrases that have a mask, 0 to {MASKS}"),
    }


REQUIRED: Mapping[str, Field] = {
    "key": Field("text", (), "str", "the record's own name, stable over rebuilds"),
    "image": Field("jpeg", (None, None, 3), "uint8", "the picture, RGB"),
    "face": Field("jpeg", (None, None, 3), "uint8", "the aligned face alone, RGB, square"),
    "shading": Field(
        "png", (None, None, 3), "uint8", "light on shape over black, of the picture's size"
    ),
    **_caption("attribute"),
    **_caption("emotion"),
    "face_id": Field("array", (512,), "float32", "identity embedding, ArcFace's or a stand-in"),
    "landmarks": Field(
        "array",
        (5, 2),
        "float32",
        "x, y in pixels, centres at whole numbers, ArcFace order; NaN if unknown",
    ),
}

OPTIONAL: Mapping[str, Field] = {
    "labels": Field("png", (None, None, 1), "uint8", "canonical label map, see fmv2.face.labels"),
    **{
        f"coefficients/{name}": Field("array", shape, "float32", meaning)
        for name, (shape, meaning) in COEFFICIENTS.items()
    },
    "latent_moments": Field(
        "array",
        (None, None, None),
        "float16",
        "the picture's VAE mean and log-variance, channels last",
    ),
}
"""Fields that every record of a data set has or none; its features say which."""


class Factor(NamedTuple):
    """An exact cause of a procedural picture, kept under `factors/` in the record."""

    name: str
    classes: tuple[str, ...] = ()
    """What it may be; empty where it is a number."""
    dtype: str = "float32"
    """Of a number: float32, or int64 for one that counts, such as the identity's."""


class Schema(NamedTuple):
    """The form of one data set's records."""

    optional: tuple[str, ...] = ()
    """Names out of OPTIONAL; "coefficients" stands for all of them."""
    factors: tuple[Factor, ...] = ()
    latent_shape: tuple[int, int, int] | None = None
    """Of `latent_moments`, where there are any: height, width, and twice the VAE's channels."""

    def fields(self) -> dict[str, Field]:
        """All fields but the factors, by their names.

        Raises:
          ValueError: an unknown optional field, or latent moments without their shape.
        """
        chosen = {
            name: field
            for name, field in OPTIONAL.items()
            if name in self.optional or name.split("/")[0] in self.optional
        }
        known = {name.split("/")[0] for name in OPTIONAL} | set(OPTIONAL)
        if unknown := set(self.optional) - known:
            raise ValueError(f"no optional field {sorted(unknown)}; there are {sorted(known)}")
        if "latent_moments" in chosen:
            if self.latent_shape is None:
                raise ValueError("latent_moments need latent_shape: height, width, channels")
            moments = chosen["latent_moments"]
            chosen["latent_moments"] = moments._replace(shape=self.latent_shape)
        return {**REQUIRED, **chosen}

    def features(self) -> Any:
        """The same as `tfds.features.FeaturesDict`."""
        from data.quiet_tfds import tfds

        flat = {name: _feature(field) for name, field in self.fields().items()}
        for factor in self.factors:
            flat[f"factors/{factor.name}"] = (
                tfds.features.ClassLabel(names=list(factor.classes))
                if factor.classes
                else tfds.features.Scalar(np.dtype(factor.dtype))
            )
        return tfds.features.FeaturesDict(nest(flat))


def _feature(field: Field) -> Any:
    from data.quiet_tfds import tfds

    match field.form:
        case "text":
            return tfds.features.Text(doc=field.meaning)
        case "array":
            return tfds.features.Tensor(
                shape=field.shape, dtype=np.dtype(field.dtype), doc=field.meaning
            )
        case encoding:
            return tfds.features.Image(
                shape=field.shape, encoding_format=encoding, doc=field.meaning
            )


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": 1} to {"a": {"b": 1}}, one level deep."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, rest = name.partition("/")
        if rest:
            nested.setdefault(group, {})[rest] = value
        else:
            nested[name] = value
    return nested


class About(NamedTuple):
    """What a batch's field holds, as an annotation."""

    shape: str
    dtype: str
    meaning: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What a training step eats; every shape is static and the first axis is the sample.

    Pixels travel as bytes: the step scales them. b samples, k = MASKS phrases, g a grid's side.
    """

    index: Annotated[
        jax.Array, About("b", "int32", "the record's number in its split, for finding it again")
    ]
    image: Annotated[jax.Array, About("b h w 3", "uint8", "RGB")]
    face: Annotated[jax.Array, About("b a a 3", "uint8", "aligned face, RGB")]
    shading: Annotated[jax.Array, About("b h w 3", "uint8", "shading map, RGB")]
    input_ids: Annotated[jax.Array, About("b 77", "int32", "tokens of the caption drawn, padded")]
    caption_kind: Annotated[
        jax.Array, About("b", "int32", "which caption was drawn: place in CAPTION_KINDS")
    ]
    token_mask: Annotated[jax.Array, About("b k 77", "bool", "the tokens of phrase k")]
    mask_valid: Annotated[jax.Array, About("b k", "bool", "whether there is a phrase k")]
    masks: Annotated[
        dict[int, jax.Array],
        About(
            "b k g g", "float32", "per grid side g: the fraction of each cell in phrase k's region"
        ),
    ]
    face_id: Annotated[
        jax.Array, About("b 512", "float32", "identity embedding; zero where dropped")
    ]
    landmarks: Annotated[jax.Array, About("b 5 2", "float32", "x, y in pixels of the image")]
    text_dropped: Annotated[
        jax.Array, About("b", "bool", "the caption is empty; by default its masks are gone too")
    ]
    face_dropped: Annotated[
        jax.Array, About("b", "bool", "the face's pixels count as zero after scaling")
    ]
    id_dropped: Annotated[
        jax.Array, About("b", "bool", "the identity is gone: face_id and the face's pixels")
    ]
    labels: Annotated[jax.Array | None, About("b h w", "uint8", "canonical labels")] = None
    coefficients: Annotated[
        dict[str, jax.Array] | None,
        About("b …", "float32", "the 3D head's, by the names in COEFFICIENTS"),
    ] = None
    latent_moments: Annotated[
        jax.Array | None, About("b u v 2c", "float16", "the image's VAE moments")
    ] = None
    factors: Annotated[
        dict[str, jax.Array] | None,
        About("b", "int32 or float32", "exact causes of the picture, by name"),
    ] = None


def describe(record: Mapping[str, Field] | None = None) -> str:
    """A record's fields (all there can be, or those given) and a batch's, as Markdown."""
    fields = {**REQUIRED, **OPTIONAL} if record is None else record
    lines = ["| record field | form | shape | type | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, field in fields.items():
        shape = " ".join("any" if side is None else str(side) for side in field.shape) or "one"
        lines.append(f"| {name} | {field.form} | {shape} | {field.dtype} | {field.meaning} |")
    lines += ["", "| batch field | shape | type | meaning |", "| --- | --- | --- | --- |"]
    for name, annotation in get_type_hints(Batch, include_extras=True).items():
        about: About = annotation.__metadata__[0]
        lines.append(f"| {name} | {about.shape} | {about.dtype} | {about.meaning} |")
    return "\n".join(lines)


def schema_of(features: Mapping[str, Any]) -> Schema:
    """The schema that a data set's TFDS features were made from.

    Raises:
      ValueError: fields are missing or of another form; all are named.
    """
    flat = dict(_flatten(features))
    factors = tuple(
        Factor(
            name.removeprefix("factors/"),
            tuple(getattr(feature, "names", None) or ()),
            np.dtype(feature.np_dtype).name,
        )
        for name, feature in flat.items()
        if name.startswith("factors/")
    )
    found = [name for name in OPTIONAL if name in flat]
    latent = flat["latent_moments"].shape if "latent_moments" in flat else None
    schema = Schema(tuple(found), factors, latent)
    expected = dict(_flatten(schema.features()))
    faults = [f"{name} is missing" for name in expected if name not in flat]
    faults += [f"{name} is unknown" for name in flat if name not in expected]
    faults += [
        f"{name} is {flat[name]!r}, expected {feature!r}"
        for name, feature in expected.items()
        if name in flat and repr(flat[name]) != repr(feature)
    ]
    if faults:
        raise ValueError("not a data set of fmv2: " + "; ".join(faults))
    return schema


def _flatten(features: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    flat = []
    for name, feature in features.items():
        inner = feature.items() if hasattr(feature, "items") else None
        flat += [(f"{name}/{rest}", value) for rest, value in inner] if inner else [(name, feature)]
    return flat
