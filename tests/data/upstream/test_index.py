import json
import random

import pytest
from etils import epath

from data.upstream import index
from fmv2.errors import UserError


def write(path, content) -> epath.Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return epath.Path(path)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("piece", [1, 7, 1000, 2**20])
def test_items_are_found_wherever_the_pieces_end(tmp_path, monkeypatch, indent, piece):
    monkeypatch.setattr(index, "_PIECE", piece)
    items = [
        {"image": f"é/{n}-日本.jpg", "caption": 'a "red" } ] hat\\', "masks": [{"n": [n, 1e3]}]}
        for n in range(20)
    ]
    text = json.dumps(items, ensure_ascii=False, indent=indent)
    found = index.build(write(tmp_path / "x.json", "\ufeff" + text + "\n"))
    assert list(found.read(range(20))) == items
    assert list(found.read([7, 3])) == [items[7], items[3]]
    assert not found.repeated.any()
    assert found.sha256 == index.build(found.path).sha256


def test_of_equal_keys_the_later_ones_are_repeated(tmp_path):
    keys = ["a", "b", "a", "c", "b", "a"]
    found = index.build(write(tmp_path / "x.json", json.dumps([{"image": key} for key in keys])))
    assert found.repeated.tolist() == [False, False, True, False, True, True]


def test_a_name_that_comes_twice_is_seen(tmp_path):
    found = index.build(
        write(tmp_path / "x.json", '[{"image": "a", "image": "b"}, {"image": "c"}]')
    )
    first, second = found.read([0, 1])
    assert isinstance(first, index.Repeated)
    assert not isinstance(second, index.Repeated)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"image": "a"}, {"image": "\xe9.jpg"}]', "not UTF-8 in item 0 or soon after"),
        (json.dumps([{"image": "a"}]).encode("utf-16"), "not UTF-8"),
        ("", "expected [, got the end"),
        ('{"image": "a"}', "item 0, byte 0: expected [, got {"),
        ("[]", "the list is empty"),
        ("[3]", "item 0, byte 1: expected an object in braces"),
        ('[{"image": "a"}, "b"]', "item 1, byte 17: expected an object in braces"),
        ('[{"image": "a"}', "item 1, byte 15: expected , or ], got the end"),
        ('[{"image": "a"} {"image": "b"}]', "expected , or ], got {"),
        ('[{"image": "a"}, {"image": nothing}]', "item 1, byte 17: Expecting value"),
        ('[{"image": "a"}, {"image": "b', "item 1, byte 17: Unterminated string"),
        ('[{"image": "a"}]\n[]', "more text after the list"),
        ('[{"x": ' + "[" * 100_000, "item 0, byte 1: nested too deeply"),
    ],
    ids=lambda value: None if len(value) > 60 else value,
)
def test_what_is_no_list_of_objects_is_refused_with_its_place(tmp_path, content, message):
    with pytest.raises(UserError) as caught:
        index.build(write(tmp_path / "x.json", content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"x\.json: cannot be read: No such file"):
        index.build(epath.Path(tmp_path / "x.json"))


def test_a_long_list_is_never_in_memory_as_a_whole(tmp_path):
    import tracemalloc

    rng = random.Random(0)
    path = tmp_path / "x.json"
    with path.open("w") as file:
        file.write("[")
        for n in range(20_000):
            item = {"image": f"{n}.jpg", "caption": "".join(rng.choices("abcdefgh ", k=900))}
            file.write(("," if n else "") + json.dumps(item))
        file.write("]")
    tracemalloc.start()
    found = index.build(epath.Path(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.bounds) == 20_000
    assert peak < path.stat().st_size / 2
