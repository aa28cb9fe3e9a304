"""`fmv2 data synth`."""

from pathlib import Path
from typing import Literal

from data import beam, console, shards
from fmv2.errors import UserError
from fmv2.tokens import EMBEDDED


def synth(
    *,
    out: str,
    count: int,
    size: int,
    seed: int,
    images_per_identity: int = 8,
    faces: Literal["own", "other"] = "own",
    tokenizer: Path = EMBEDDED,
    workers: int | None = None,
    runner: str = beam.LOCAL,
    runner_options: tuple[str, ...] = (),
) -> None:
    """Make records from the procedural face world: rendered heads whose every cause is known.

    The same seed, count, size and tokenizer make the same bytes. A run that was interrupted goes on
    where it was when the same command is run again.

    Args:
      out: the data set's folder, local or gs://: free, or begun by the same command.
      count: records, all splits together.
      size: pixels of a picture's side, a multiple of 8 from 32 on.
      seed: of everything that is drawn, from 0 on.
      images_per_identity: pictures of each person, in different pose, light, expression and dress.
      faces: whether a record's aligned face is its own picture's, as in upstream's records, or that
        of another picture of the same person: then it tells who it is, and not how the picture is.
      tokenizer: the folder of the CLIP tokenizer that token masks are made for: that of the model
        that is to be trained. The embedded default's own when left out.
      workers: processes on this machine, one per core when left out. Each starts in seconds.
      runner: of Apache Beam: DirectRunner is this machine; FlinkRunner, SparkRunner,
        DataflowRunner and others need fmv2 installed on their workers and storage they share.
      runner_options: Beam's for that runner, as name=value.
    """
    faults = [
        f"--{name} is {value}: expected {lowest} or more"
        for name, value, lowest in (
            ("count", count, 1),
            ("seed", seed, 0),
            ("images-per-identity", images_per_identity, 1),
        )
        if value < lowest
    ]
    if faces == "other" and images_per_identity == 1:
        faults.append("--faces other needs --images-per-identity of 2 or more")
    if size < 32 or size % 8:
        faults.append(f"--size is {size}: expected a multiple of 8 from 32 on, such as 128")
    if faults:
        raise UserError("; ".join(faults))
    processes = beam.workers(runner, workers)
    from data.procedural.world import World  # late: bad values are told at once

    source = World(
        seed=seed,
        count=count,
        size=size,
        images_per_identity=images_per_identity,
        tokenizer=tokenizer,
        faces=faces,
    )
    summary = shards.write(
        source,
        out,
        runner=runner,
        runner_options=runner_options,
        workers=processes,
    )
    console.say(summary.describe(out))
