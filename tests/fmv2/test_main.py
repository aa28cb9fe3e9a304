"""The process of the command: started again, its words and exit status kept, its pages huge."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import resource, sys
from fmv2.__main__ import run

assert run() == 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    b"x" * 2**27
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
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


@pytest.mark.skipif(
    not PAGES.is_file() or "[madvise]" not in PAGES.read_text(),
    reason="huge pages are not the program's to ask for here",
)
def test_large_pieces_are_not_zeroed_page_by_page():
    def faults(**environment: str) -> int:
        return int(started("-c", PROGRAM, "--version", **environment).stdout.splitlines()[-1])

    assert 10 * faults() < faults(GLIBC_TUNABLES="")
