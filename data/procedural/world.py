"""The procedural face world as a source of records, see `data.shards.Source`."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from data.codec import Caption, Record, encode_jpeg, encode_png
from data.procedural import chance
from data.procedural.factors import CLASSES, EMOTIONS, EXPRESSION, IDENTITY, Factors
from data.procedural.head import EXPRESSIONS, SHAPES
from data.procedural.words import attribute_caption, emotion_caption
from data.schema import Factor, Schema
from data.shards import Shard
from fmv2.face.labels import NUMBER
from fmv2.face.regions import region_mask
from fmv2.tokens import Tokens

VERSION = 1
"""Of this world: the same version, seed and item make the same picture."""

_AT_ONCE = 8
"""Pictures that one call of the renderer draws."""
Faces = Literal["own", "other"]
"""Which picture a record's aligned face is cut from: its own, as upstream has it, or another of the
same person, whose pose, light and dress tell nothing of those of this one."""
_LEAST_PIXELS = 1 / 8000
"""Of the picture: a region that is smaller is not seen, and not spoken of."""
_HELD_OUT = 0.05
_SHARD = (16, 1000)
"""Fewest and most records of a shard, as the data set grows."""

_SEEN_IN = {
    "hair_style": "hair",
    "hair_color": "hair",
    "bangs": "hair",
    "hat": "hat",
    "hat_color": "hat",
    "glasses": "glasses",
    "glasses_color": "glasses",
    "beard": "beard",
    "lip_color": "lips",
    "earrings": "earrings",
    "earring_color": "earrings",
    "necklace": "necklace",
    "cloth_color": "clothes",
    "eye_color": "eyes",
}
"""Where what an attribute says of a picture is to be seen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """So many pictures of made-up people, some of whom are held out for validation."""

    seed: int
    count: int
    size: int
    """Pixels of a picture's side."""
    images_per_identity: int
    tokenizer: Path
    faces: Faces = "own"

    @property
    def schema(self) -> Schema:
        """Every cause of a picture is in its record."""
        factors = [Factor("identity", dtype="int64")]
        factors += [Factor(name) for name in (*IDENTITY, *EXPRESSION)]
        factors += [Factor(name, labels) for name, labels in CLASSES.items()]
        factors += [Factor("emotion", EMOTIONS)]
        return Schema(("labels", "coefficients"), tuple(factors))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was asked for."""
        return {
            "source": "synth",
            "world": VERSION,
            "tokenizer": self._tokens.fingerprint,
            "seed": self.seed,
            "count": self.count,
            "size": self.size,
            "images_per_identity": self.images_per_identity,
            "faces": self.faces,
        }

    def fingerprint(self) -> str:
        """Of all that decides the bytes: the metadata says it."""
        return " ".join(f"{name}={value}" for name, value in self.metadata.items())

    def shards(self) -> Sequence[Shard]:
        """The last people are the ones held out: none is in both splits."""
        people = math.ceil(self.count / self.images_per_identity)
        held_out = max(round(_HELD_OUT * people), 1) if people > 1 else 0
        border = min((people - held_out) * self.images_per_identity, self.count)
        least, most = _SHARD
        size = min(max(self.count // 32, least), most)
        found = []
        for split, items in (
            ("train", range(border)),
            ("validation", range(border, self.count)),
        ):
            parts = [items[first : first + size] for first in range(0, len(items), size)]
            found += [Shard(split, i, len(parts), part) for i, part in enumerate(parts)]
        return found

    def records(self, items: Sequence[int]) -> Iterator[Record]:
        """Rendered a few at a time; what is drawn together has no influence on any of it."""
        for first in range(0, len(items), _AT_ONCE):
            some = items[first : first + _AT_ONCE]
            shown = [self._shown(item) for item in some]
            drawn = self._drawn([*some, *(item for item in shown if item not in some)])
            for item, face_of in zip(some, shown, strict=True):
                (factors, picture), (_, other) = drawn[item], drawn[face_of]
                yield self._record(item, factors, {**picture, "face": other["face"]})

    def _shown(self, item: int) -> int:
        """The item whose face this one's record has: the person's next, and after the last the
        first."""
        if self.faces == "own":
            return item
        person, place = divmod(item, self.images_per_identity)
        first = person * self.images_per_identity
        return first + (place + 1) % min(self.images_per_identity, self.count - first)

    def _drawn(self, items: Sequence[int]) -> dict[int, tuple[Factors, dict[str, np.ndarray]]]:
        """Causes and pictures by item."""
        causes = [
            chance.factors(self.seed, item, item // self.images_per_identity) for item in items
        ]
        pictures = draw(causes, self.size)
        return {
            item: (causes[i], {k: v[i] for k, v in pictures.items()})
            for i, item in enumerate(items)
        }

    @functools.cached_property
    def _tokens(self) -> Tokens:
        return Tokens.load(self.tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _record(self, item: int, factors: Factors, picture: Mapping[str, np.ndarray]) -> Record:
        regions = Regions(picture["labels"], picture["beard"])
        classes = regions.seen(chance.named(factors.classes))
        expression = {k: float(v) for k, v in zip(EXPRESSION, factors.expression, strict=True)}
        rng = np.random.Generator(np.random.PCG64([self.seed, item, VERSION]))
        emotion = EMOTIONS[int(factors.emotion)]
        worded = {
            "attribute": attribute_caption(classes, rng),
            "emotion": emotion_caption(emotion, expression, classes, rng),
        }
        person = item // self.images_per_identity
        return Record(
            key=f"synth-{self.seed}/person-{person:07d}/{item:08d}",
            image=encode_jpeg(picture["image"]),
            face=encode_jpeg(picture["face"]),
            shading=encode_png(picture["shading"]),
            captions={kind: self._caption(words, regions) for kind, words in worded.items()},
            face_id=chance.identity_code(factors),
            landmarks=picture["landmarks"],
            optional={"labels": encode_png(picture["labels"]), **coefficients_of(factors)},
            factors={
                "identity": person,
                **dict(zip(IDENTITY, factors.identity, strict=True)),
                **dict(zip(EXPRESSION, factors.expression, strict=True)),
                **chance.named(factors.classes),
                "emotion": emotion,
            },
        )

    def _caption(self, words: Any, regions: "Regions") -> Caption:
        shown = [phrase for phrase in words.phrases if regions.shows(phrase.region)]
        size = regions.labels.shape
        masks = [regions.mask(phrase.region) for phrase in shown]
        return Caption(
            text=words.text,
            masks=np.stack(masks) if masks else np.zeros((0, *size), bool),
            tokens=self._tokens.phrases(words.text, [(p.start, p.end) for p in shown]),
        )


class Regions:
    """What of a picture the words may speak of."""

    def __init__(self, labels: np.ndarray, beard: np.ndarray):
        self.labels = labels
        self._beard = beard

    def mask(self, region: str) -> Bool[np.ndarray, "h w"]:
        return self._beard if region == "beard" else region_mask(region, self.labels)

    def shows(self, region: str) -> bool:
        return _enough(self.mask(region))

    def seen(self, classes: Mapping[str, str]) -> dict[str, str]:
        """Without those whose place is hidden, by hair, a hat or the turn of the head. That a thing
        is absent can be said all the same."""
        iris = np.isin(self.labels, [NUMBER["l_eye"], NUMBER["r_eye"]])
        hidden = {
            name
            for name, region in _SEEN_IN.items()
            if not (_enough(iris) if region == "eyes" else self.shows(region))
        }
        absent = {name for name in hidden if classes[name] in ("none", "bald")}
        return {k: v for k, v in classes.items() if k not in hidden - absent}


def _enough(mask: np.ndarray) -> bool:
    return mask.sum() >= max(_LEAST_PIXELS * mask.size, 4)


def draw(causes: Sequence[Factors], size: int) -> dict[str, np.ndarray]:
    """Pictures of these as `picture.draw` makes them, by name, in NumPy."""
    import jax  # workers' start and a plan of shards need no renderer

    from data.procedural import picture

    face_size = 112 if size < 256 else 224  # as CLIP's image towers want it
    # Always the same number at once, so that one program draws them all.
    places = np.arange(-(-len(causes) // _AT_ONCE) * _AT_ONCE).reshape(-1, _AT_ONCE)
    drawn = [
        jax.device_get(picture.draw(chance.stack(some), size=size, face_size=face_size))._asdict()
        for row in np.minimum(places, len(causes) - 1)
        for some in [[causes[place] for place in row]]
    ]
    return {name: np.concatenate([one[name] for one in drawn])[: len(causes)] for name in drawn[0]}


def coefficients_of(factors: Factors) -> dict[str, np.ndarray]:
    """As DECA's encoder would give them; the fields beyond this world's own are zero."""
    from data.procedural.scene import pose_of

    pose = np.asarray(pose_of(factors))
    return {
        "coefficients/shape": np.pad(factors.identity, (0, SHAPES - len(IDENTITY))),
        "coefficients/expression": np.pad(factors.expression, (0, EXPRESSIONS - len(EXPRESSION))),
        "coefficients/pose": np.concatenate([pose[0], pose[2]]),
        "coefficients/camera": factors.camera,
        "coefficients/light": factors.light,
    }
