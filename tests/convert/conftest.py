"""One tiny model in upstream's forms, and what the converter made of it, made once per session."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from convert import folder as folders
from tests.random_model import write_sources


class Sources(NamedTuple):
    """Paths, as `write_sources` returns them."""

    base: Path
    model_bin: Path
    clip: Path
    arcface: Path
    deca: Path


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(*write_sources(tmp_path_factory.mktemp("sources")))


@pytest.fixture(scope="session")
def model(sources: Sources) -> folders.Model:
    return folders.read(folders.assemble(sources))


@pytest.fixture(scope="session")
def export(model: folders.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete folder, with upstream's file; not to be written to."""
    out = tmp_path_factory.mktemp("export") / "model"
    folders.write(model, out, upstream=True)
    return out


def edit_json(path: Path, **fields) -> None:
    """Sets fields of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
