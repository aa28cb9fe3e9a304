"""`fmv2 data encode`."""

from pathlib import Path

from tyro.conf import Positional

from data import beam, console, shards
from data.encoded import Encoded
from fmv2.errors import UserError


def encode(
    folder: Positional[str],
    /,
    *,
    model: Path,
    out: str,
    size: int = 512,
    runner: str = beam.LOCAL,
    runner_options: tuple[str, ...] = (),
) -> None:
    """Write a data set once more, its pictures encoded too, for training on latents of records.

    `fmv2 train PRESET --data OUT --objective.latents record` then has no VAE to run at each step,
    but for the identity term. All devices of this machine encode. A run that was interrupted goes
    on where it was when the same command is run again.

    Args:
      folder: the data set, local or gs://; it is only read.
      model: the base that is to be trained on: a folder with the VAE, as fmv2 convert writes it.
      out: the new data set's folder: free, or begun by the same command.
      size: pixels of a picture's side in training, a multiple of 8.
      runner: of Apache Beam: DirectRunner is this machine; FlinkRunner, SparkRunner,
        DataflowRunner and others need fmv2 installed on their workers and storage they share.
      runner_options: Beam's for that runner, as name=value.
    """
    faults = []
    if size < 32 or size % 8:
        faults.append(f"--size is {size}: expected a multiple of 8 from 32 on, such as 512")
    if not model.is_dir():
        faults.append(f"--model {model}: no such folder: make one with fmv2 convert from-diffusers")
    if faults:
        raise UserError("; ".join(faults))
    source = Encoded(data=folder, model=model, size=size)
    summary = shards.write(source, out, runner=runner, runner_options=runner_options)
    console.say(summary.describe(out))
