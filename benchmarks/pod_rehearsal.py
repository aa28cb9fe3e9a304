"""Rehearses on one machine what a pod does: several processes train one model, save and resume it.

    make pod-rehearsal

Two processes of four CPU devices each, joined over loopback, train a Face-MakeUpV2 of few layers
with its weights and optimizer split eight ways across both (fsdp 8), and save it. Then one process
of eight devices restores their last checkpoint, whose state must be theirs to the bit, and resumes
from the one before, whose losses must be theirs again. What is compared is printed with its
figures; the exit status is 1 where anything differs more than it says.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

_HALF, _WHOLE = 3, 6
_TOLERANCE = 1e-5
"""Of losses, relative: sums over devices come in another order."""

_console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Runs the rehearsal; the exit status."""
    with tempfile.TemporaryDirectory(prefix="pod-rehearsal-") as scratch:
        return rehearse(Path(scratch))


def rehearse(folder: Path) -> int:
    """The same in a folder of its own."""
    # A base and records for it; in a process of its own, for this one is to hold no device.
    make = (
        "import sys; from pathlib import Path; from tests.train.small import *;"
        "f = Path(sys.argv[1]); write_records(f / 'data', write_base(f / 'base'))"
    )
    _console.print("making a base and records")
    subprocess.run([sys.executable, "-c", make, str(folder)], check=True, env=_environment(1))

    pod, restored, resumed = (folder / name for name in ("pod", "restored", "resumed"))
    _console.print(f"2 processes × 4 devices, fsdp 8: {_WHOLE} steps, saved after every {_HALF}")
    saved = _train(folder, pod, processes=2)
    shutil.copytree(pod, restored)
    _console.print(f"1 process × 8 devices, fsdp 8: restores step {_WHOLE}")
    taken_up = _train(folder, restored, processes=1)
    shutil.copytree(pod, resumed)
    shutil.rmtree(resumed / "checkpoints" / str(_WHOLE))
    _console.print(f"1 process × 8 devices, fsdp 8: resumes at step {_HALF}")
    again = _train(folder, resumed, processes=1)

    _console.print(f"\nstate of step {_WHOLE}")
    _console.print(f"  as 2 processes made and saved it       sha256 {saved}")
    _console.print(f"  as 1 process restored it               sha256 {taken_up}")
    _console.print(f"  as 1 process made it from step {_HALF}       sha256 {again}")
    same_bits = saved == taken_up
    _console.print(f"every bit of it, saved by 2 and restored by 1: {_word(same_bits)}")
    rows = [_losses(pod), _losses(resumed)]
    worst = 0.0
    for step in range(_HALF + 1, _WHOLE + 1):
        ours, theirs = rows[0][step], rows[1][step]
        difference = abs(ours - theirs) / abs(ours)
        worst = max(worst, difference)
        _console.print(
            f"loss of step {step}: 2 processes {ours:.7f}, 1 process {theirs:.7f},"
            f" relative difference {difference:.1e}"
        )
    same_losses = worst <= _TOLERANCE
    _console.print(f"losses after resuming, within {_TOLERANCE:g}: {_word(same_losses)}")
    return 0 if same_bits and same_losses else 1


def _word(same: bool) -> str:
    return "the same" if same else "DIFFERENT"


def _train(folder: Path, out: Path, *, processes: int) -> str:
    """Trains or resumes with eight devices in all; the digest that the run ends with."""
    words = ["train", "tiny", "--data", folder / "data", "--base", folder / "base", "--out", out]
    words += ["--steps", _WHOLE, "--checkpoint-every", _HALF, "--size", 64, "--batch-size", 8]
    words += ["--objective.rank", 2, "--objective.id-weight", 0, "--mesh.fsdp", 8]
    words += ["--optimizer.warmup-steps", 0, "--report.log-every", 1]
    words += ["--report.validate-every", 0, "--report.sample-every", 0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(processes):
        hosts = ["--hosts.coordinator", f"127.0.0.1:{port}", "--hosts.count", processes]
        hosts += ["--hosts.index", index]
        command = [Path(sys.executable).with_name("fmv2"), *words, *(hosts * (processes > 1))]
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(8 // processes),
        )
        started.append(process)
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"a process ended with {[p.returncode for p in started]}")
    # Beside it on standard output is what Gloo says of its connections.
    found = [re.findall(r"state sha256 ([0-9a-f]{64})", text) for text in said]
    if [len(digests) for digests in found] != [1] + [0] * (processes - 1):
        raise SystemExit(f"expected one digest, by process 0: {said}")
    return found[0][0]


def _losses(out: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def _environment(devices: int) -> dict[str, str]:
    root = Path(__file__).parents[1]
    return os.environ | {
        "PYTHONPATH": str(root),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # compiling takes nearly all of the time
        "JAX_COMPILATION_CACHE_DIR": str(root / ".cache" / "jax"),
    }


if __name__ == "__main__":
    sys.exit(main())
