"""CLIP's tokenizer: a caption to 77 ids, and the tokens that each of its phrases became."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from fmv2.assets import TINY
from fmv2.errors import UserError

TOKENS = 77
"""Positions of CLIP's text encoder, the start token included."""

EMBEDDED = TINY / "tokenizer"
"""The embedded default's own, trained on the words of the procedural world."""

_FILES = ("tokenizer.json", "vocab.json")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """A tokenizer of CLIP's format. It travels to other processes."""

    backend: tokenizers.Tokenizer
    start: int
    """The id that every text begins with."""
    end: int
    """The id that closes it."""
    pad: int
    """The id that fills the rest: the end's again in Stable Diffusion 1.x, another in 2.x."""

    @classmethod
    def load(cls, folder: Path) -> "Tokens":
        """From the `tokenizer` folder of a Stable Diffusion.

        Raises:
          UserError: the folder is not there, or holds no tokenizer of CLIP's format.
        """
        if not any((Path(folder) / name).is_file() for name in _FILES):
            raise UserError(
                f"{folder}: holds neither {' nor '.join(_FILES)}: name the tokenizer folder of a "
                "Stable Diffusion model"
            )
        from transformers import CLIPTokenizer  # takes a second

        try:
            read = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of many kinds, and the reader's own say little
            raise UserError(f"{folder}: cannot be read as CLIP's tokenizer: {error}") from error
        backend = read.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        special = {"start": read.bos_token_id, "end": read.eos_token_id, "pad": read.pad_token_id}
        if missing := [name for name, number in special.items() if number is None]:
            raise UserError(f"{folder}: has no {', '.join(missing)} token: it is not CLIP's")
        return cls(backend=backend, **special)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what decides the ids: vocabulary, merges, special ids and length."""
        model = json.loads(self.backend.to_str())["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        decides = [sorted(model["vocab"].items()), merges, self.start, self.end, self.pad, TOKENS]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Of the vocabulary."""
        return self.backend.get_vocab_size()

    def ids(self, text: str) -> Int[np.ndarray, "77"]:
        """Start, the text's tokens as far as they have room, end, padding."""
        found = self._encode(text).ids[: TOKENS - 2]
        ids = np.full(TOKENS, self.pad, np.int32)
        ids[: len(found) + 2] = [self.start, *found, self.end]
        return ids

    def phrases(self, text: str, spans: Sequence[tuple[int, int]]) -> Bool[np.ndarray, "n 77"]:
        """Which positions of `ids(text)` hold each phrase; those cut off are simply not there.

        Args:
          text: a caption.
          spans: first character and the one behind the last of each phrase.
        """
        masks = np.zeros((len(spans), TOKENS), bool)
        offsets = self._encode(text).offsets[: TOKENS - 2]
        for row, (start, end) in zip(masks, spans, strict=True):
            row[1 : len(offsets) + 1] = [a < end and start < b for a, b in offsets]
        return masks

    def length(self, text: str) -> int:
        """Positions of the text with start and end, were there room for all."""
        return len(self._encode(text).ids) + 2

    def words(self, ids: Int[np.ndarray, "n"]) -> str:
        """The text of some ids, special ones left out."""
        special = (self.start, self.end)
        text = self.backend.decode([int(i) for i in ids if i not in special])
        return text.replace("</w>", " ").strip()

    def single(self, word: str) -> int | None:
        """The id of a word that is one token; None where it is several."""
        ids = self._encode(word).ids
        return ids[0] if len(ids) == 1 else None

    def _encode(self, text: str) -> tokenizers.Encoding:
        return self.backend.encode(text, add_special_tokens=False)
