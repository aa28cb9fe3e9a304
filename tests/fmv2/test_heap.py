"""What is freed is there again, without the system's help."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from fmv2.heap import keep_heap

if sys.argv[1] == "kept":
    keep_heap()
np.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_large_pieces_are_not_mapped_anew():
    def run(how: str) -> int:
        command = [sys.executable, "-c", PROGRAM, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert 10 * run("kept") < run("plain")
