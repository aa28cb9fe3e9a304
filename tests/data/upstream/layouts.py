"""Upstream's layout on disk, small, whole, and with one fault at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

ROOTS = ("images", "faces", "face_ids", "shading", "masks")
CAPTION = "a red hat"
"""Eight positions with the start token: every letter is a token, and 8 is the end token's."""


def write_tokenizer(folder: Path) -> Path:
    """CLIP's format without merges: one token a letter."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)
    return folder


def write_layout(root: Path, items: int = 6, size: tuple[int, int] = (48, 40)) -> list[dict]:
    """The newer era's files; returns what `list.json` holds. `size` is width and height."""
    width, height = size
    content = []
    for n in range(items):
        image, face = f"p{n % 2}/{n}.jpg", f"f/{n}.jpg"
        write_picture(root / "images" / image, noise(n, height, width, 3))
        write_picture(root / "shading" / image, np.full((height, width, 3), 10 * n % 256, np.uint8))
        write_picture(root / "faces" / face, noise(100 + n, 24, 24, 3))
        write_embedding(root / "face_ids" / f"f/{n}.pt", torch.full((1, 512), n + 1.0))
        write_picture(root / "masks/Attribute" / f"{n}_hat.png", box(size, 8 * (n % 3), 8))
        write_picture(root / "masks/Emotion" / f"{n}_mouth.png", box(size, 4, 20))
        content.append(
            {
                "image": image,
                "face": [face, "f/other.jpg"],
                "face_attribute_caption": CAPTION,
                "atrribute_parsing_masks": [
                    {"mask": f"{n}_hat.png", "token_indices": [2, 3, 4, 5, 6, 7]}
                ],
                "face_emotion_caption": "a smile",
                "emotion_parsing_masks": [{"mask": f"{n}_mouth.png", "token_indices": [2, 3]}],
            }
        )
    write_list(root, content)
    return content


def write_list(root: Path, content: Any) -> None:
    (root / "list.json").write_text(json.dumps(content))


def edit(root: Path, number: int, change: Callable[[dict], Any]) -> None:
    content = json.loads((root / "list.json").read_text())
    change(content[number])
    write_list(root, content)


def write_picture(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb[..., ::-1] if rgb.ndim == 3 else rgb)


def write_embedding(path: Path, tensor: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensor, path)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def box(size: tuple[int, int], start: int, side: int) -> np.ndarray:
    """White from x = y = start, grey below a half elsewhere."""
    mask = np.full((size[1], size[0]), 100, np.uint8)
    mask[start : start + side, start : start + side] = 200
    return mask
