"""`fmv2 sample`."""

import dataclasses
import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import Progress

import fmv2
from fmv2.assets import TINY
from fmv2.conditions import Conditions
from fmv2.errors import UserError
from fmv2.pictures import read_mask, read_picture
from fmv2.pipeline import Dtype, FaceMakeUp, Person
from fmv2.settings import Settings

Part = Literal["expression", "pose", "light"]


def sample(
    *,
    prompt: str,
    face: tuple[Path, ...] = (),
    weights: tuple[float, ...] = (),
    shading_image: Path | None = None,
    neutral: tuple[Part, ...] = (),
    edit: Path | None = None,
    mask: Path | None = None,
    negative_prompt: str = "",
    num_images: int = 1,
    size: int | None = None,
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings(),  # noqa: B008
    model: str = str(TINY),
    dtype: Dtype = "float32",
    out: Path = Path("sample.png"),
) -> None:
    """Draw pictures of a prompt and a face, and write how they were made into them.

    Args:
      prompt: what the pictures show.
      face: a picture with the face in its middle; several are mixed. Without one, the base model
        draws.
      weights: of the faces in the mixture; alike when left out.
      shading_image: a shading map to obey, in place of the one of the face.
      neutral: parts of the face's head that become neutral.
      edit: a square picture of which a region is drawn anew; nothing else of it changes.
      mask: that region, white on black.
      negative_prompt: what is led away from.
      num_images: how many.
      size: side in pixels; by default that which the model was trained on.
      settings: how they are drawn.
      model: a model's folder, or OWNER/NAME on the Hugging Face hub.
      dtype: of weights and arithmetic.
      out: a PNG file that is not there yet; of several pictures, their number is put behind its
        name.
    """
    console = Console(stderr=True)
    paths = _paths(out, num_images)
    faults = [*settings.faults(), *_out_faults(out, paths, num_images)]
    faults += _weight_faults(face, weights)
    if (edit is None) != (mask is None):
        faults.append("--edit and --mask go together: give both or none")
    if not face and (shading_image or neutral):
        faults.append("--shading-image and --neutral need a --face")
    source = None if edit is None else _try(faults, read_picture, edit)
    region = None if mask is None else _try(faults, read_mask, mask)
    if source is not None:
        if size not in (None, len(source)):
            faults.append(f"--size {size}: an edit has the size of its picture, {len(source)}")
        size = len(source)
    with console.status("reading the model"):
        loaded = _try(faults, lambda: FaceMakeUp.from_pretrained(model, dtype=dtype))
    if loaded is None:
        for path in (*face, *([shading_image] if shading_image else [])):
            _try(faults, read_picture, path)
        raise UserError("; ".join(faults))
    person = None
    if face:
        changes: dict[str, Any] = dict.fromkeys(neutral, "neutral")
        with console.status("looking at the face"):
            found = _try(
                faults,
                lambda: loaded.prepare(list(face), shading_image, size=size, **changes),
            )
        person = _mixed(found, weights)
    else:
        faults += loaded.size_faults(loaded.default_size if size is None else size)
    if faults:
        raise UserError("; ".join(dict.fromkeys(faults)))
    recipe = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        **dataclasses.asdict(settings),
        "model": model,
        "model_digest": loaded.digest,
        "dtype": dtype,
        "face": [_named(path) for path in face],
        "weights": list(weights),
        "shading_image": _named(shading_image),
        "neutral": list(neutral),
        "edit": _named(edit),
        "mask": _named(mask),
    }
    images = _drawn(loaded, console, recipe, person, settings, source, region, num_images, size)
    for number, (path, image) in enumerate(zip(paths, images, strict=True)):
        _write(path, image, {**recipe, "size": len(image), "picture": number})
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _drawn(loaded, console, recipe, person: Person, settings, source, region, num_images, size):
    """The pictures; what of the prompt counts for nothing is said beside them."""
    common = {
        "negative_prompt": recipe["negative_prompt"],
        "num_images": num_images,
        **dataclasses.asdict(settings),
    }
    with (
        warnings.catch_warnings(record=True) as said,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        warnings.simplefilter("always", UserWarning)
        task = progress.add_task("drawing", total=None)

        def told(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if source is None:
            made = loaded.generate(recipe["prompt"], person, size=size, progress=told, **common)
        else:
            made = loaded.edit(source, region, recipe["prompt"], person, progress=told, **common)
    for warning in said:
        note = f"note: {warning.message}"
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    return made.images


def _try(faults: list[str], read, *given):
    """What is read, or None and one more fault."""
    try:
        return read(*given)
    except UserError as error:
        faults.append(str(error))
        return None


def _mixed(found: Sequence[Conditions] | None, weights: Sequence[float]) -> Person:
    if not found:
        return None
    if len(found) == 1:
        return found[0]
    return list(zip(found, weights or [1.0] * len(found), strict=True))


def _weight_faults(face: Sequence[Path], weights: Sequence[float]) -> list[str]:
    faults = []
    if weights and len(weights) != len(face):
        faults.append(f"{len(weights)} --weights for {len(face)} faces: expected one of each")
    if weights and not (np.isfinite(weights).all() and min(weights) >= 0 and sum(weights) > 0):
        faults.append(f"--weights {list(weights)}: expected 0 or more, one above 0 at least")
    return faults


def _paths(out: Path, count: int) -> list[Path]:
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(count)]


def _out_faults(out: Path, paths: Sequence[Path], count: int) -> list[str]:
    faults = []
    if count < 1:
        faults.append(f"--num-images {count}: expected 1 or more")
    if out.suffix.lower() != ".png":
        faults.append(f"--out {out}: expected a name that ends in .png")
    if not out.parent.is_dir():
        faults.append(f"--out {out}: there is no folder {out.parent}: make it or name another")
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        faults.append(f"--out {', '.join(taken)} is there already: delete it or name another file")
    return faults


def _named(path: Path | None) -> dict[str, str] | None:
    """A picture in a recipe: what it is called, and its bytes' digest."""
    if path is None:
        return None
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _write(path: Path, image: np.ndarray, recipe: Mapping[str, object]) -> None:
    """As PNG with the recipe, one text chunk for each of its entries; whole or not at all."""
    info = PngInfo()
    info.add_text("Software", f"fmv2 {fmv2.__version__}")
    for name, value in recipe.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        info.add_itxt(name, text)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG", pnginfo=info)
    try:
        with path.open("xb") as file:
            file.write(encoded.getvalue())
    except FileExistsError as e:
        raise UserError(f"--out {path} is there already: name another file") from e
    except OSError as e:
        path.unlink(missing_ok=True)
        raise UserError(f"--out {path}: cannot be written: {e.strerror}") from e
