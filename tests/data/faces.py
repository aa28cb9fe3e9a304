"""Small data sets for the tests of what reads them: pictures whose content says where it is."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data.codec import Caption, Record, encode_jpeg, encode_png, to_example
from data.quiet_tfds import tfds
from data.schema import COEFFICIENTS, Factor, Schema

WORDS = ("", "left", "right", "a", "red", "hat", "glasses", "smiling", "woman", "with", "eye")

PLAIN = Schema()
EVERYTHING = Schema(
    optional=("labels", "coefficients", "latent_moments"),
    factors=(Factor("hat", ("none", "cap")), Factor("smile"), Factor("identity", dtype="int64")),
    latent_shape=(4, 4, 8),
)


class Words:
    """A tokenizer of whole words, with the manners of `fmv2.tokens.Tokens`."""

    def __init__(self, words: tuple[str, ...] = WORDS):
        self.words = words
        self.fingerprint = hashlib.sha256(" ".join(words).encode()).hexdigest()

    def ids(self, text: str) -> np.ndarray:
        ids = [self.words.index(word) for word in text.split()][:75]
        begin, end = len(self.words), len(self.words) + 1
        return np.array([begin, *ids, end] + [end] * (75 - len(ids)), np.int32)

    def phrases(self, text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        found = np.zeros((len(spans), 77), bool)
        for place, word in enumerate(list(re.finditer(r"\S+", text))[:75]):
            for row, (start, end) in enumerate(spans):
                found[row, 1 + place] = start < word.end() and word.start() < end
        return found

    def single(self, word: str) -> int | None:
        return self.words.index(word) if word in self.words else None


def face_record(number: int, schema: Schema = PLAIN, side: int = 32) -> Record:
    """A record whose pixels, identity and words all follow from its number."""
    rng = np.random.default_rng(number)
    size = (side, side)
    masks = rng.random((2, *size)) < 0.5
    tokens = np.zeros((2, 77), bool)
    tokens[[0, 1], [2, 3]] = True
    coefficients = {
        f"coefficients/{name}": rng.normal(size=shape).astype(np.float32)
        for name, (shape, _) in COEFFICIENTS.items()
    }
    optional = {
        "labels": encode_png(rng.integers(0, 19, size, np.uint8)),
        "latent_moments": rng.normal(size=(4, 4, 8)).astype(np.float16),
        **coefficients,
    }
    factors = {"hat": number % 2, "smile": number / 100, "identity": number // 2}
    return Record(
        key=f"person-{number}",
        image=encode_jpeg(np.full((*size, 3), number % 256, np.uint8)),
        face=encode_jpeg(rng.integers(0, 255, (16, 16, 3), np.uint8)),
        shading=encode_png(rng.integers(0, 255, (*size, 3), np.uint8)),
        captions={
            "attribute": Caption(text="a red hat", masks=masks, tokens=tokens),
            "emotion": Caption(text="smiling woman", masks=masks[:1], tokens=tokens[:1]),
        },
        face_id=rng.normal(size=512).astype(np.float32),
        landmarks=rng.uniform(0, side, (5, 2)).astype(np.float32),
        optional=optional if schema.optional else {},
        factors=factors if schema.factors else {},
    )


def write_dataset(
    folder: Path,
    counts: Mapping[str, tuple[int, ...]],
    *,
    schema: Schema = PLAIN,
    record: Callable[[int, Schema], Record] = face_record,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A TFDS directory with shards of so many records per split, by TFDS' own means."""
    folder.mkdir(parents=True)
    features = schema.features()
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    splits = []
    number = 0
    for split, shards in counts.items():
        size = 0
        for shard, length in enumerate(shards):
            name = f"fmv2-{split}.array_record-{shard:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(folder / name), "group_size:1")
            for _ in range(length):
                example = features.encode_example(to_example(record(number, schema), schema))
                serialized = serializer.serialize_example(example)
                writer.write(serialized)
                size += len(serialized)
                number += 1
            writer.close()
        template = tfds.core.ShardedFileTemplate(
            dataset_name="fmv2", split=split, data_dir=folder, filetype_suffix="array_record"
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=list(shards),
                num_bytes=size,
                filename_template=template,
            )
        )
    metadata = {"tokenizer": Words().fingerprint} if metadata is None else metadata
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=splits,
        check_data=False,
        metadata=tfds.core.MetadataDict(metadata),
    )
    return folder
