"""The records of a data set once more, with the moments that a VAE gives their pictures.

A frozen VAE says the same of a picture at every step, and is the costliest of the frozen nets that
a training step runs. With `objective.latents` "record" the step reads these moments instead.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float16, UInt8

from convert.folder import Assembly, assemble, read
from data.codec import Example, decode
from data.dataset import Dataset, Records, open_dataset
from data.schema import Schema
from data.shards import Shard
from fmv2.errors import UserError
from fmv2.fingerprint import fingerprint
from fmv2.inputs import image_input
from fmv2.nets import Nets
from fmv2.pictures import square

_FIELD = "latent_moments"
_MADE_BY = "vae"
"""The metadata's name for the VAE that made them."""
_AT_ONCE = 8
"""Most pictures that a device encodes together."""

_Round = tuple[Sequence[Mapping[str, Any]], Array]
"""Records, and the moments of their pictures, which may still be in the making."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """A `data.shards.Source`; each shard of the data set becomes one."""

    data: str
    """The data set, local or gs://."""
    model: Path
    """A folder with the VAE: the base that is to be trained on."""
    size: int
    """Pixels of a picture's side in training: the moments are those of its centred square."""

    @property
    def schema(self) -> Schema:
        others = (name for name in self._dataset.schema.optional if name != _FIELD)
        shape = self._nets["vae"].config.moments(self.size)
        return self._dataset.schema._replace(optional=(*others, _FIELD), latent_shape=shape)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The data set's, and which VAE it was."""
        return {**self._dataset.metadata, _MADE_BY: self._vae}

    def fingerprint(self) -> str:
        """Of the records, the VAE and the size."""
        return f"{self._dataset.fingerprint} {self._vae} {self.size}"

    def shards(self) -> Sequence[Shard]:
        """Items are numbered through all splits."""
        found, first = [], 0
        for name, split in self._dataset.builder.info.splits.items():
            lengths = split.shard_lengths
            for number, length in enumerate(lengths):
                found.append(Shard(name, number, len(lengths), range(first, first + length)))
                first += length
        return found

    def records(self, items: Sequence[int]) -> Iterator[Example]:
        """While the devices encode some pictures, the next ones are read."""
        before: _Round = ([], jnp.zeros(0))
        for now in itertools.chain(self._rounds(items), [before]):
            for fields, moments in zip(before[0], np.asarray(before[1]), strict=False):
                yield Example({**fields, _FIELD: moments})
            before = now

    def _rounds(self, items: Sequence[int]) -> Iterator[_Round]:
        encode = self._nets.jit(_moments, "vae")
        for places in self._nets.portions(len(items), _AT_ONCE) if items else ():
            some = [items[place] for place in np.unique(places)]
            found = [self._read(item) for item in some]
            pictures = np.stack([picture for _, picture in found])
            filled = pictures[np.minimum(np.arange(len(places)), len(some) - 1)]
            yield [fields for fields, _ in found], encode(self._nets.share(filled))

    def _read(self, item: int) -> tuple[Mapping[str, Any], UInt8[np.ndarray, "s s 3"]]:
        """A record, and its picture as training sees it."""
        ends = list(itertools.accumulate(map(len, self._splits)))
        split = bisect.bisect_right(ends, item)
        records = self._splits[split]
        number = item - ends[split] + len(records)
        fields = records[number]
        try:
            picture = decode(fields["image"])
        except ValueError as error:
            raise records.fault(number, fields["key"], error) from error
        return fields, square(picture, self.size)

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return open_dataset(self.data)

    @functools.cached_property
    def _splits(self) -> Sequence[Records]:
        return [self._dataset.source(split) for split in self._dataset.splits]

    @functools.cached_property
    def _nets(self) -> Nets:
        return Nets({"vae": _vae(assemble([self.model]))})

    @functools.cached_property
    def _vae(self) -> str:
        return fingerprint(self._nets["vae"])

    def __getstate__(self) -> dict[str, Any]:
        """Without what a worker makes for itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def check_vae(dataset: Dataset, base: Assembly, size: int) -> None:
    """
    Args:
      size: pixels of a picture's side in training.
    Raises:
      UserError: the data set's moments are not those of the base's VAE, or of another size; or it
        has none.
    """
    vae = _vae(base)
    theirs, ours = dataset.metadata.get(_MADE_BY, "no VAE"), fingerprint(vae)
    shape, wanted = dataset.schema.latent_shape, vae.config.moments(size)
    found = f"is encoded by {theirs[:12]}" + ("" if shape is None else f" as {shape}")
    if (theirs, shape) != (ours, wanted):
        raise UserError(
            f"{dataset.path} {found}, but this run needs {ours[:12]} and {wanted}: encode it with"
            f" fmv2 data encode --model BASE --size {size}, or set --objective.latents vae"
        )


def _vae(source: Assembly) -> Any:
    """Its VAE alone, in float32 whatever the file's precision.

    Raises:
      UserError: there is none, or not all of one.
    """
    if "vae" not in source.parts:
        raise UserError("the model has no VAE: name one that has")
    alone = dataclasses.replace(source, parts={"vae": source.parts["vae"]}, head=None)
    return read(alone, dtype=jnp.float32).vae


def _moments(
    nets: Mapping[str, Any], images: UInt8[Array, "b s s 3"]
) -> Float16[Array, "b u u 2*c"]:
    mean, logvar = nets["vae"].encode(image_input(images))
    return jnp.concatenate([mean, logvar], axis=-1).astype(jnp.float16)
