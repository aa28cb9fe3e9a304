"""A finished data set on disk or in a bucket: what it holds, and its records one by one."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath
from google.protobuf import json_format

from data.quiet_tfds import tfds
from data.schema import OPTIONAL, REQUIRED, VERSION, Schema, schema_of
from fmv2.errors import UserError
from fmv2.tokens import Tokens

UNFINISHED = ".building"
"""The folder that a data set has while it is being written, see `data.shards`."""


class Records:
    """One split's records by number, their pictures still encoded. It travels to other processes.

    A record is a flat mapping by the schema's names, `factors/…` included: text, encoded pictures
    as bytes, and arrays.
    """

    def __init__(self, source: Any, features: Any, path: str, split: str):
        """
        Args:
          source: of serialized examples.
          features: what of them is read.
        """
        self._source = source
        self._features = features
        forms = {**REQUIRED, **OPTIONAL}
        skip = tfds.decode.SkipDecoding()
        self._decoders = {
            name: skip for name in features if name in forms and forms[name].form in ("jpeg", "png")
        }
        self.path = path
        self.split = split

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """
        Raises:
          IndexError: there is no such record.
          UserError: the shard cannot be read there.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"split {self.split!r} has records 0 to {len(self) - 1}, not {number}")
        try:
            example = self._features.deserialize_example_np(
                self._source[number], decoders=self._decoders
            )
        except Exception as error:  # the reader's and protobuf's have no common base
            raise self.fault(number, None, error) from error
        flat = {}
        for name, value in example.items():
            group = value.items() if isinstance(value, dict) else None
            flat |= {f"{name}/{rest}": v for rest, v in group} if group else {name: value}
        texts = ("key", "attribute_caption", "emotion_caption")
        return flat | {name: flat[name].decode() for name in texts}

    def fault(self, number: int, key: str | None, reason: object) -> UserError:
        """What to raise about a record that cannot be used."""
        named = f"record {number}" + (f" ({key!r})" if key is not None else "")
        return UserError(
            f"{self.path}, split {self.split!r}, {named}: {reason}; the shard is damaged:"
            " delete the data set and build it again, or copy it again from its origin"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set that `open_dataset` has found whole."""

    path: str
    schema: Schema
    metadata: Mapping[str, Any]
    """What its writer told of it; "tokenizer" is there."""
    splits: Mapping[str, int]
    """Records in each."""
    builder: Any
    """TFDS' own view of it."""

    @property
    def tokenizer(self) -> str:
        """Fingerprint of the tokenizer that the token masks belong to."""
        return self.metadata["tokenizer"]

    @property
    def fingerprint(self) -> str:
        """sha256 over what tells one data set from another: form, metadata, and each split's shards
        with their bytes. Its place does not matter."""
        shards = {
            name: [*split.shard_lengths, int(split.num_bytes)]
            for name, split in self.builder.info.splits.items()
        }
        told = [self.schema, dict(self.metadata), shards]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def source(self, split: str, optional: Collection[str] | None = None) -> Records:
        """
        Args:
          optional: which of labels, coefficients, latent_moments and factors are read; all of them
            when None. The fewer, the faster.
        Raises:
          UserError: there is no such split.
        """
        if split not in self.splits:
            there = ", ".join(self.splits) or "none"
            raise UserError(f"{self.path} has no split {split!r}: name one of its own, {there}")
        features = {
            name: feature
            for name, feature in self.builder.info.features.items()
            if optional is None or name in REQUIRED or name in optional
        }
        serialized = self.builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        return Records(serialized, tfds.features.FeaturesDict(features), self.path, split)

    def key(self, split: str, number: int) -> str:
        """The name of a record, from its number as in `Batch.index`."""
        return self.source(split, ())[number]["key"]

    def check_tokenizer(self, tokens: Tokens) -> None:
        """
        Raises:
          UserError: the token masks belong to another tokenizer.
        """
        if tokens.fingerprint != self.tokenizer:
            raise UserError(
                f"{self.path} has token masks of the tokenizer {self.tokenizer}, but the model's"
                f" is {tokens.fingerprint}: use the tokenizer that the data set was built with,"
                " or build it again with this one"
            )


def open_dataset(path: epath.PathLike) -> Dataset:
    """Opens a folder written by `fmv2 data`, local or `gs://`.

    Raises:
      UserError: it is not there, not whole, of another form, or not a data set of fmv2.
    """
    place = epath.Path(path)
    if not place.is_dir():
        raise UserError(
            f"{path}: no such folder; `fmv2 data synth` and `fmv2 data build` write one"
        )
    if (place / UNFINISHED).exists():
        raise UserError(
            f"{path} is not finished: run the command that writes it again, it takes up its work"
        )
    if not (place / "dataset_info.json").exists():
        inside = sorted(found.parent.name for found in place.glob("*/dataset_info.json"))
        mend = (
            f"name one of its folders, {', '.join(inside)}"
            if inside
            else ("name a folder that `fmv2 data synth` or `fmv2 data build` wrote")
        )
        raise UserError(f"{path} is not a data set (it has no dataset_info.json): {mend}")
    try:
        with warnings.catch_warnings():  # of protobuf, to TFDS
            warnings.filterwarnings("ignore", "label", DeprecationWarning)
            builder = tfds.builder_from_directory(str(place))
        features: Any = builder.info.features
        version = builder.version
    except (ValueError, KeyError, OSError, json_format.Error) as error:
        raise UserError(f"{path} cannot be opened as a data set: {error}") from error
    if version.major != int(VERSION.split(".")[0]):
        raise UserError(
            f"{path} has records of version {version}, this program reads {VERSION}: build it again"
        )
    try:
        schema = schema_of(features)
        schema = schema._replace(factors=tuple(sorted(schema.factors)))  # TFDS keeps no order
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    metadata = dict(builder.info.metadata or {})
    if "tokenizer" not in metadata:
        raise UserError(
            f"{path}: its metadata.json does not name the tokenizer of its token masks:"
            " build it again"
        )
    splits = {name: split.num_examples for name, split in builder.info.splits.items()}
    return Dataset(path=str(path), schema=schema, metadata=metadata, splits=splits, builder=builder)
