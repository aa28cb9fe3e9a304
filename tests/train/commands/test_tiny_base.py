"""`fmv2 train tiny-base`: the parts in their order, each from the folder of the one before."""

from pathlib import Path

import train.chain
from fmv2 import cli
from train.commands.tiny_base import parts
from train.presets.tiny_base import PARTS
from train.presets.tiny_unet import tiny_unet


def test_parts_are_the_presets_with_what_is_asked_for():
    own, asked = parts("d"), parts("d", steps=3, checkpoint_every=2)
    assert tuple(own) == tuple(asked) == PARTS
    assert own["tiny_unet"].steps == tiny_unet().steps
    assert own["tiny_unet"].objective == tiny_unet().objective
    for config in asked.values():
        assert (config.data, config.steps, config.checkpoint_every) == ("d", 3, 2)


def test_the_command_trains_them(monkeypatch):
    called = []

    def train_chain(given, out):
        called.append((given, out))
        return 7

    monkeypatch.setattr(train.chain, "train_chain", train_chain)
    words = ["train", "tiny-base", "--data", "d", "--out", "o", "--steps", "3"]
    assert cli.main(words) == 7
    assert called == [(parts("d", steps=3), Path("o"))]
