"""A source of records that needs no renderer and no files; worker processes import it, too."""

import dataclasses
import os
import signal
import time

import numpy as np

from data.codec import Caption, Record, encode_jpeg, encode_png
from data.schema import COEFFICIENTS, MASKS, TOKENS, Factor, Schema
from data.shards import Mended, Shard, Skipped
from fmv2.errors import UserError

SIDE = 16


@dataclasses.dataclass(frozen=True)
class FakeSource:
    """Every field of the schema; `shape` tells how many items each shard of a split has."""

    shape: tuple[tuple[str, tuple[int, ...]], ...] = (("train", (3, 2, 3)), ("validation", (2,)))
    skipped: tuple[int, ...] = ()
    mended: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    interrupted: tuple[int, ...] = ()
    pause: float = 0.0
    version: int = 0

    @property
    def schema(self):
        return Schema(
            ("labels", "coefficients", "latent_moments"),
            (Factor("smile"), Factor("person", dtype="int64"), Factor("hat", ("none", "cap"))),
            (2, 2, 8),
        )

    @property
    def metadata(self):
        return {"source": "fake", "tokenizer": "abc", "version": self.version}

    def fingerprint(self):
        return f"{self.shape} {self.version}"

    def shards(self):
        found, first = [], 0
        for split, sizes in self.shape:
            for number, size in enumerate(sizes):
                found.append(Shard(split, number, len(sizes), range(first, first + size)))
                first += size
        return found

    def records(self, items):
        for item in items:
            time.sleep(self.pause)
            if item in self.interrupted:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)  # the signal is heard by another thread
            if item in self.refused:
                raise UserError(f"item {item}: the picture is missing: put it there")
            if item in self.skipped:
                yield Skipped(f"{item}", "cut short")
                continue
            if item in self.mended:
                yield Mended("masks dropped", 2)
            yield record(item)


def record(item: int) -> Record:
    """The same for the same item, in every process."""
    rng = np.random.default_rng(item)

    def pixels(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, np.uint8)

    def caption(kind: str, count: int) -> Caption:
        return Caption(
            text=f"{kind} {item} é",
            masks=rng.random((count, SIDE, SIDE)) < 0.5,
            tokens=rng.random((count, TOKENS)) < 0.5,
        )

    return Record(
        key=f"fake/{item}",
        image=encode_jpeg(pixels(SIDE, SIDE, 3)),
        face=encode_jpeg(pixels(8, 8, 3)),
        shading=encode_png(pixels(SIDE, SIDE, 3)),
        captions={
            "attribute": caption("attribute", item % (MASKS + 1)),
            "emotion": caption("e", 0),
        },
        face_id=rng.standard_normal(512, np.float32),
        landmarks=rng.standard_normal((5, 2), np.float32),
        optional={
            "labels": encode_png(pixels(SIDE, SIDE)),
            "latent_moments": rng.standard_normal((2, 2, 8)).astype(np.float16),
            **{
                f"coefficients/{name}": rng.standard_normal(shape, np.float32)
                for name, (shape, _) in COEFFICIENTS.items()
            },
        },
        factors={"smile": np.float32(rng.random()), "person": 2**40 + item, "hat": "cap"},
    )
