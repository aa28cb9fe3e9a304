"""Ctrl-C is heard wherever it is delivered, and nothing of this stays behind."""

import gc
import signal
import time
import weakref

import pytest

from fmv2.interrupt import heard


class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def _xla_gc_callback(*_):
    gc.callbacks.remove(_xla_gc_callback)
    signal.raise_signal(signal.SIGINT)


def collect():
    gc.callbacks.append(_xla_gc_callback)
    gc.collect()


class Member:
    pass


class Loud(set):
    def discard(self, _):
        signal.raise_signal(signal.SIGINT)


def forget():
    """The set's own callback of a weak reference."""
    member, members = Member(), weakref.WeakSet()
    members.add(member)
    vars(members)["data"] = Loud(vars(members)["data"])
    del member


def interrupt():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def usual():
    """Python's own handler, whatever the tests are run by."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def listen(when):
    with heard():
        when()
        time.sleep(5)


@pytest.mark.parametrize("when", [interrupt, collect, Deaf, forget])
def test_ctrl_c_is_heard(when):
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt):
        listen(when)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) is before


def test_what_ignores_it_goes_on_ignoring():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with heard():
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
