import numpy as np
import pytest
from PIL import Image

from data.codec import Caption, Record, encode_jpeg, encode_png
from data.contact_sheet import draw, save
from data.dataset import open_dataset
from data.drawing import COLORS, Word, words
from tests.data.faces import Words, write_dataset

TEXT = "a red hat with left eye"


def record(number, schema):
    masks = np.zeros((2, 64, 64), bool)
    masks[0, :32, :32] = True
    masks[1, 32:, 32:] = True
    tokens = Words().phrases(TEXT, [(2, 9), (15, 23)])
    caption = Caption(text=TEXT, masks=masks, tokens=tokens)
    return Record(
        key=f"k{number}",
        image=encode_jpeg(np.full((64, 64, 3), 128, np.uint8)),
        face=encode_jpeg(np.full((16, 16, 3), 128, np.uint8)),
        shading=encode_png(np.zeros((64, 64, 3), np.uint8)),
        captions={"attribute": caption, "emotion": caption},
        face_id=np.zeros(512, np.float32),
        landmarks=np.full((5, 2), np.nan, np.float32),
    )


@pytest.fixture
def records(tmp_path):
    folder = write_dataset(tmp_path / "set", {"train": (2,)}, record=record)
    return open_dataset(folder).source("train")


def test_words_know_their_phrase(records):
    found = words(TEXT, Words(), records[0]["attribute_tokens"][:2])
    names = ("a", "red", "hat", "with", "left", "eye")
    assert found == [Word(*pair) for pair in zip(names, (None, 0, 0, None, 1, 1), strict=True)]
    assert words("", Words(), records[0]["attribute_tokens"]) == []


def test_masks_and_words_have_the_phrases_colours(records):
    sheet = np.asarray(draw(records, [0, 1], Words())).astype(int)
    # The attribute masks are the second tile; each of its quarters leans to its mask's colour.
    tile = sheet[34 : 34 + 208, 232 : 232 + 208]
    free = tile[20, 180]
    for (y, x), color in {(50, 50): COLORS[0], (150, 150): COLORS[1]}.items():
        np.testing.assert_allclose(tile[y, x], 0.55 * free + 0.45 * np.array(color), atol=2)
    text = sheet[34:, 1112:].reshape(-1, 3)
    for color in COLORS[:2]:
        assert (text == color).all(-1).any()
    assert not (text == COLORS[2]).all(-1).any()


def test_a_sheet_is_saved_whole_or_not_at_all(records, tmp_path, monkeypatch):
    sheet = draw(records, [0], Words())
    folder = tmp_path / "out"
    folder.mkdir()
    save(sheet, folder / "sheet.png")
    with Image.open(folder / "sheet.png") as saved:
        assert saved.size == sheet.size

    def full(file, kind):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(sheet, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(sheet, folder / "other.png")
    assert [path.name for path in folder.iterdir()] == ["sheet.png"]
