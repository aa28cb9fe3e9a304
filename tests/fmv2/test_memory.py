"""The process of the command: started again, its words and exit status kept, its memory too."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading
from fmv2.__main__ import run
from fmv2.memory import run_in_this_thread

assert run() == 0
run_in_this_thread()
import jax
import jax.numpy as jnp
import numpy as np

@jax.jit
def program(x):
    squares = x @ x.T  # 64 MiB, of which the program returns nothing
    jax.debug.callback(lambda: threads.add(threading.get_ident()))
    return (squares @ squares).sum()

threads, faults = set(), []
x = jnp.ones((4096, 8))
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
jax.effects_barrier()
print(sorted(faults)[len(faults) // 2])
print(threads == {threading.get_ident()})
"""


def started(*words: str, **environment: str):
    left = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, *words]
    given = left | environment
    return subprocess.run(command, check=False, capture_output=True, text=True, env=given)


@pytest.mark.parametrize("given", [{}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=3"}])
def test_words_and_exit_status_are_kept(given):
    done = started("-m", "fmv2", "no-such-command", **given)
    assert done.returncode == 2
    assert "no-such-command" in done.stderr
    assert started("-m", "fmv2", "--version", **given).stdout.startswith("fmv2 ")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_program_takes_its_memory_once():
    def told(**environment: str) -> list[str]:
        done = started("-c", PROGRAM, "--version", JAX_PLATFORMS="cpu", **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-2:]

    faults, here = told()
    assert here == "True"
    assert 10 * int(faults) < int(told(GLIBC_TUNABLES="")[0])


def test_ctrl_c_takes_no_thread_down_with_it(tmp_path):
    (tmp_path / "amid.py").write_text(
        "import atexit\n"
        "def amid() -> int:\n"
        "    atexit.register(print, 'taken down')\n"
        "    print('at work')\n"
        "    raise KeyboardInterrupt\n"
    )
    program = (
        "from fmv2 import __main__, cli\n"
        "found = cli.Group({'amid': cli.Command('amid:amid', '')}, '')\n"
        "cli.main.__defaults__ = (None, found)\n"
        "__main__.run()\n"
    )
    done = started("-c", program, "amid", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (130, "at work\n")
    assert done.stderr == "fmv2 amid: stopped\n"
