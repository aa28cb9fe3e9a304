"""Prompts to tokens, and what of a prompt is cut off."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from fmv2.errors import UserError
from fmv2.tokens import TOKENS, Tokens


class Prompts:
    """A model's tokenizer.

    Args:
      files: of the tokenizer's folder, by name.
    Raises:
      UserError: they are no tokenizer of CLIP's format.
    """

    def __init__(self, files: Mapping[str, bytes]):
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            self.tokens = Tokens.load(Path(folder))

    def ids(self, texts: Sequence[str]) -> Int[np.ndarray, "n 77"]:
        """Of each text as far as it has room."""
        return np.stack([self.tokens.ids(text) for text in texts])

    def cut(self, text: str) -> str | None:
        """What to say of a text that is longer than the text encoder reads; None where it fits."""
        length = self.tokens.length(text)
        if length <= TOKENS:
            return None
        read = self.tokens.words(self.tokens.ids(text))
        last = " ".join(read.split()[-4:])
        return (
            f"the prompt has {length - 2} tokens, of which the first {TOKENS - 2} are read: all"
            f" behind “… {last}” counts for nothing"
        )

    def phrases(self, text: str, phrases: Sequence[str]) -> Bool[np.ndarray, "k 77"]:
        """The tokens of each phrase, wherever the text has it as whole words, in any case.

        Raises:
          UserError: phrases that it does not have, or that were cut off, all of them named.
        """
        masks = np.zeros((len(phrases), TOKENS), bool)
        for mask, phrase in zip(masks, phrases, strict=True):
            pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
            spans = [m.span() for m in re.finditer(pattern, text, re.IGNORECASE) if phrase]
            mask |= self.tokens.phrases(text, spans).any(axis=0)
        if absent := [repr(p) for p, mask in zip(phrases, masks, strict=True) if not mask.any()]:
            raise UserError(
                f"attention of {', '.join(absent)}: not in what is read of the prompt {text!r}"
            )
        return masks
