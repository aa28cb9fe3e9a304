import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from data.schema import CAPTION_KINDS
from fmv2.errors import UserError
from fmv2.tokens import Tokens
from tests.data.faces import write_dataset
from tests.train.test_exactness import digest_of
from tests.train.toy import Toy, toy_run, write_inputs
from train import loop
from train.loop import train
from train.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The config of a run that has come to its end, and its folder; not to be gone on with."""
    out = tmp_path_factory.mktemp("finished") / "run"
    config = toy_run(*inputs, out)
    assert train(config) == 0
    return config, out


def steps_of(out: Path) -> list[int]:
    return sorted(int(path.name) for path in (out / "checkpoints").iterdir())


def losses_of(out: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def signal_after(monkeypatch, step: int, number: int) -> None:
    """The run is sent a signal when a step has landed."""
    landed = loop.Report.step

    def heard(self, at, metrics):
        landed(self, at, metrics)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop.Report, "step", heard)


def test_a_signal_after_the_last_step_is_not_swallowed(inputs, tmp_path, monkeypatch, capfd):
    run = toy_run(*inputs, tmp_path / "run")
    signal_after(monkeypatch, run.steps, signal.SIGINT)
    # A shell's background job ignores it from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(run)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().out.splitlines()[-1].startswith("done at step 6 of 6; state sha256 ")
    assert steps_of(tmp_path / "run") == [2, 4, 6]


def test_a_stopped_run_says_how_to_resume_and_ends_as_if_nothing_had_been(
    inputs, finished, tmp_path, monkeypatch, capfd
):
    whole, out = finished
    assert steps_of(out) == [2, 4, 6]
    assert train(whole) == 0  # there is nothing left to do
    said = capfd.readouterr()
    last = said.out.splitlines()[-1]
    assert last.startswith("done at step 6 of 6; state sha256 ")
    assert "resumed at step 6" in said.err

    stopped = toy_run(*inputs, tmp_path / "stopped")
    for number in (signal.SIGTERM, signal.SIGINT):
        with monkeypatch.context() as patch:
            handlers = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
            signal_after(patch, 2 if number == signal.SIGTERM else 4, number)
            assert train(stopped) == 128 + number
            assert [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)] == handlers
        # A step late, for the next one is at work when the second has landed.
        said = capfd.readouterr().out.splitlines()[-1]
        reached = steps_of(tmp_path / "stopped")[-1]
        assert said.startswith(
            f"ended by {signal.Signals(number).name} at step {reached} of 6;"
            " rerun the same command to resume; state sha256 "
        )
    assert train(stopped) == 0
    assert digest_of(capfd.readouterr().out) == digest_of(last)
    assert losses_of(tmp_path / "stopped") == losses_of(out)


def test_a_run_may_be_made_in_parts(inputs, finished, tmp_path, monkeypatch, capfd):
    whole, out = finished
    monkeypatch.chdir(tmp_path)
    config = toy_run(*inputs, Path("parts"))
    assert train(config, until=3) == 0
    assert capfd.readouterr().out.startswith("done at step 3 of 6;")
    assert steps_of(tmp_path / "parts")[-1] == 3
    assert train(config, until=9) == train(whole) == 0
    parts, at_once = capfd.readouterr().out.splitlines()
    assert digest_of(parts) == digest_of(at_once)
    assert losses_of(tmp_path / "parts") == losses_of(out)


def test_metrics_are_read_while_the_next_step_is_at_work(inputs, tmp_path, monkeypatch):
    order = []
    prepare, report = loop.prepare, loop.Report.step

    def watched(config, console):
        run, state = prepare(config, console)

        def step(*args):
            order.append("step")
            return run.step(*args)

        return dataclasses.replace(run, step=step), state

    def landed(self, number, metrics):
        order.append(f"landed {number}")
        report(self, number, metrics)

    monkeypatch.setattr(loop, "prepare", watched)
    monkeypatch.setattr(loop.Report, "step", landed)
    assert train(toy_run(*inputs, tmp_path / "run", steps=4, checkpoint_every=3)) == 0
    assert order == [
        *("step", "step", "landed 1"),
        *("step", "landed 2", "landed 3"),  # a checkpoint wants to know that all is well
        *("step", "landed 4"),
    ]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state_before_it(
    inputs, tmp_path, capfd
):
    with_loader = toy_run(*inputs, tmp_path / "x")
    run, _ = loop.prepare(with_loader, loop.Console(stderr=True))
    with run.loader() as loader:
        batches = [np.asarray(next(loader).index) for _ in range(4)]
    # A record of the fourth batch, which none of the first three holds.
    poison = int(next(n for n in batches[3] if not any(n in b for b in batches[:3])))
    poisoned = toy_run(*inputs, tmp_path / "run", objective=Toy(poison=poison))
    clean = toy_run(*inputs, tmp_path / "clean", steps=3, objective=Toy(poison=poison))
    assert train(clean) == 0
    expected = digest_of(capfd.readouterr().out)
    assert train(poisoned) == 1
    said = capfd.readouterr()
    assert "step 4 is not finite: error nan, gradient_norm" in said.err
    named = ", ".join(f"person-{n}" for n in batches[3])
    assert f"loss nan; its records: {named}. The state before it is kept" in said.err
    last = said.out.splitlines()[-1]
    assert last == f"not finite at step 4: ended at step 3 of 6; state sha256 {expected}"
    assert steps_of(tmp_path / "run") == [2, 3]


@pytest.mark.parametrize(("attribute", "kind"), [(1.0, "attribute"), (0.0, "emotion")])
def test_captions_are_of_the_kind_that_is_asked_for(inputs, tmp_path, attribute, kind):
    run, _ = loop.prepare(
        toy_run(*inputs, tmp_path / "x", attribute=attribute), loop.Console(stderr=True)
    )
    with run.loader() as loader:
        kinds = next(loader).caption_kind
    assert {CAPTION_KINDS[kind] for kind in np.asarray(kinds)} == {kind}


def test_a_folder_of_another_run_is_refused_with_the_differences(finished, capfd):
    first, out = finished
    written = steps_of(out), losses_of(out)
    other = dataclasses.replace(
        first, seed=3, optimizer=OptimizerConfig(learning_rate=0.5), objective=Toy(poison=1)
    )
    with pytest.raises(UserError) as refused:
        train(other)
    text = str(refused.value)
    for difference in (
        "seed: was 0, is 3",
        "optimizer.learning_rate: was 0.01, is 0.5",
        "objective.poison: was None, is 1",
    ):
        assert difference in text, text
    assert text.startswith(f"{out}: holds a run of another config")
    assert (steps_of(out), losses_of(out)) == written
    # What may change: how long, how often saved, where and how it is read.
    again = dataclasses.replace(first, steps=5, workers=1, checkpoint_every=1, keep_last=5)
    assert train(again) == 0
    assert "at step 6 of 5" in capfd.readouterr().out


def test_other_records_or_another_base_are_refused(inputs, finished, tmp_path, monkeypatch):
    (_, base), (config, out) = inputs, finished
    tokenizer = Tokens.load(base / "tokenizer").fingerprint
    other = write_dataset(tmp_path / "fewer", {"train": (9,)}, metadata={"tokenizer": tokenizer})
    with pytest.raises(UserError, match=r"its run read something else: the dataset was .* --data"):
        train(dataclasses.replace(config, data=str(other)))
    monkeypatch.setattr(loop, "fingerprint", lambda nets: "f" * 64)
    with pytest.raises(UserError, match=r"the base was .*, is ffffffffffff .see --base"):
        train(config)
    assert steps_of(out) == [2, 4, 6]
