"""A run that is killed and rerun ends with the same bits as one that was not."""

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.train.toy import toy_run, write_inputs
from train.loop import train

# Children are forked from one process that has imported everything, so that a rerun costs little.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.conftest", "tests.train.test_exactness"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def digest_of(text: str) -> str:
    """What the last line of a run says."""
    found = re.search(r"state sha256 ([0-9a-f]{64})$", text.splitlines()[-1])
    assert found, text
    return found[1]


def child(inputs, out: Path, dies: str, log: Path) -> None:
    """A run in a process of its own, which kills itself where it is told to."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    if dies == "before the checkpoint has its name":
        from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath

        async def finalize(self):
            if self.get_final().name.isdigit():  # all of the step's items are written
                os.kill(os.getpid(), signal.SIGKILL)
            return await whole(self)

        whole = AtomicRenameTemporaryPath.finalize
        AtomicRenameTemporaryPath.finalize = finalize
    train(toy_run(*inputs, out))


def wait_for(process, reached) -> None:
    """Kills the process as soon as something has happened."""
    while not reached():
        assert process.is_alive(), "it ended before it was to be killed"
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)


def steps_seen(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def half_written(out: Path) -> list[str]:
    return [path.name for path in (out / "checkpoints").glob("*.orbax-checkpoint-tmp")]


def test_killed_at_several_moments_and_rerun_the_digest_is_that_of_an_uninterrupted_run(
    inputs, tmp_path, capfd
):
    assert train(toy_run(*inputs, tmp_path / "whole")) == 0
    expected = digest_of(capfd.readouterr().out)

    out, log = tmp_path / "killed", tmp_path / "log"

    def run(dies="", kill_when=None) -> int:
        process = _CONTEXT.Process(target=child, args=(inputs, out, dies, log))
        process.start()
        if kill_when:
            wait_for(process, kill_when)
        process.join()
        return process.exitcode

    # In the first steps, before there is any checkpoint.
    assert run(kill_when=lambda: steps_seen(out) >= 1) == -signal.SIGKILL
    # All of the first checkpoint is written, but its folder has not got its name.
    assert run("before the checkpoint has its name") == -signal.SIGKILL
    assert half_written(out) == ["2.orbax-checkpoint-tmp"]
    assert not (out / "checkpoints" / "2").exists()
    # While a checkpoint is being written.
    assert run(kill_when=lambda: (out / "checkpoints" / "2").exists() and half_written(out)) < 0
    # Between two checkpoints, a step in flight.
    assert run(kill_when=lambda: steps_seen(out) >= 5) == -signal.SIGKILL
    assert run() == 0
    assert digest_of(log.read_text()) == expected
    # What is reported is that of one run as well: every step once.
    lines = [path.read_text() for path in (out / "metrics.jsonl", tmp_path / "whole/metrics.jsonl")]
    losses = [re.findall(r'"step": (\d+).*"loss": ([\d.]+)', text) for text in lines]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
