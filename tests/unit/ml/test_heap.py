"""Memory between the passes of a network stays with the process, and only meanwhile."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from contextlib import nullcontext
from dicomnode.ml.inference import heap
import torch

def faults():
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def passes():
    for _ in range(50):
        torch.ones(64 * 2**20, dtype=torch.uint8)

torch.set_num_threads(1)
passes()
base, before = resident_mib(), faults()
with heap.kept() if sys.argv[1] == "kept" else nullcontext():
    passes()
print(faults() - before, resident_mib() - base)
"""


def measured(way: str) -> tuple[int, float]:
    """Page faults of fifty blocks of 64 MiB, one after the other, and the memory that stays, in MiB."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
    faults, held = ended.stdout.split()
    return int(faults), float(held)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")
def test_kept_memory_is_not_fetched_anew_each_time_and_is_given_back_at_the_end() -> None:
    usual, _ = measured("as usual")
    kept, held = measured("kept")

    pages = 64 * 2**20 // 4096
    assert usual > 49 * pages  # each of the fifty anew
    assert kept < 15 * pages  # until there is a hole that small blocks have not split
    assert held < 80
