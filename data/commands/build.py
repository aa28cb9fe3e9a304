"""`fmv2 data build`."""

from pathlib import Path
from typing import Literal

from etils import epath

from data import beam, console, shards
from data.ledger import PROBLEMS, Ledger
from data.upstream.records import Roots
from data.upstream.source import Upstream
from fmv2.errors import UserError

_LISTED = 10


def build(
    *,
    json: str,
    images: str,
    faces: str,
    face_ids: str,
    shading: str,
    masks: str,
    out: str,
    tokenizer: Path,
    on_error: Literal["stop", "skip"] = "stop",
    size: int = 512,
    validation: float = 0.01,
    workers: int | None = None,
    runner: str = beam.LOCAL,
    runner_options: tuple[str, ...] = (),
) -> None:
    """Make records from upstream's layout, that of FaceCaptionMask-1M, for training.

    The JSON is a list with an object per picture, of either era: `image`, `face`,
    `face_emotion_caption` with `emotion_parsing_masks`, `face_attribute_caption` with
    `atrribute_parsing_masks`; or `face_caption` or `face_short_caption` with `parsing_masks`.
    `landmarks`, five [x, y] in pixels, may be added. Every path in it is looked up before anything
    is written. A run that was interrupted goes on where it was when the same command is run again.

    Args:
      json: upstream's list, UTF-8. This and all folders may be local or gs://.
      images: the pictures, which `image` is relative to.
      faces: the aligned faces, which `face` is relative to.
      face_ids: their embeddings: the faces' paths with .pt for .jpg, torch tensors (1, 512).
      shading: the shading maps, under the pictures' own paths.
      masks: holds Emotion/ and Attribute/, or, for older files, the masks themselves.
      out: the data set's folder: free, or begun by the same command.
      tokenizer: the folder of the CLIP tokenizer that token_indices count in, such as `tokenizer`
        of Stable Diffusion 1.5.
      on_error: of a bad item: stop, or skip it and list it in problems.jsonl in the data set.
      size: pixels of the short side that larger pictures are shrunk to.
      validation: the part of the items that goes into the split "validation", from 0 to below 1.
      workers: processes on this machine, one per core when left out. Each starts in seconds.
      runner: of Apache Beam: DirectRunner is this machine; FlinkRunner, SparkRunner,
        DataflowRunner and others need fmv2 installed on their workers and storage they share.
      runner_options: Beam's for that runner, as name=value: flink_master=host:8081, or
        project=p region=r temp_location=gs://b/tmp sdk_container_image=i.
    """
    faults = []
    if size < 64:
        faults.append(f"--size is {size}: expected at least 64 pixels, such as 512")
    if not 0 <= validation < 1:
        faults.append(f"--validation is {validation}: expected a part from 0 to below 1")
    folders = Roots(*(epath.Path(root) for root in (images, faces, face_ids, shading, masks)))
    faults += [
        f"--{name.replace('_', '-')} {folder}: there is no such folder: name the one in use"
        for name, folder in folders._asdict().items()
        if not folder.is_dir()
    ]
    if faults:
        raise UserError("; ".join(faults))
    source = Upstream(
        json=epath.Path(json),
        roots=folders,
        tokenizer=tokenizer,
        size=size,
        validation=validation,
        on_error=on_error,
    )
    summary = shards.write(
        source,
        out,
        runner=runner,
        runner_options=runner_options,
        workers=beam.workers(runner, workers),
        before=lambda: check(source, out),
    )
    console.say(summary.describe(out))


def check(source: Upstream, out: epath.PathLike) -> None:
    """Looks every reference up; the problems go to PROBLEMS, the first of them to the terminal.

    Raises:
      UserError: there are problems, and they are to stop the run or no item is without.
    """
    with console.bar("checking", len(source)) as done:
        problems = list(source.problems(done))
    if not problems:
        return
    Ledger(out).report(problems)
    bad = len({item for item, _ in problems})
    for item, problem in problems[:_LISTED] if len(problems) > 1 else ():
        console.say(f"item {item}: {problem}")
    listed = epath.Path(out) / PROBLEMS
    if source.on_error == "skip" and bad < len(source):
        console.say(f"{bad} of {len(source)} items will be left out, listed in {listed}")
        return
    item, problem = problems[0]
    mend = "mend the paths or the folders"
    if source.on_error == "stop":
        mend = "mend them, or leave such items out with --on-error skip"
    raise UserError(
        f"item {item}: {problem}; in all {len(problems)} problems in {bad} of {len(source)} items,"
        f" all of them in {listed}: {mend}"
    )
