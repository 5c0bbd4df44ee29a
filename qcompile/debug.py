"""What happened in this process so far, in numbers: for tests, and for whoever asks why something was packed or compiled again.

from qcompile import debug

before = debug.counters()
model(x)
print({name: number - before[name] for name, number in debug.counters().items()})
"""

# name -> what it counts. None of it is counted during an ordinary call of compiled code.
MEANINGS = {
    "graphs": "graphs that Dynamo handed over",
    "compiled": "pieces of code that were made: one for each graph, or for each distinct part of one whose layers repeat",
    "adopted": "further layers that run the code of an equal one",
    "evaluated": "packed or dense weights that were computed from raw ones",
    "shared": "packed or dense weights that were there already",
    "mapped": "packed weights that were mapped from a file (option cache_dir)",
    "packed_again": "calls that found a raw weight changed",
    "unpacked": "graphs that a changed weight made run as they were captured",
}
_counts = dict.fromkeys(MEANINGS, 0)


def counters() -> dict[str, int]:
    """A copy of all counts, by the names of MEANINGS."""
    return dict(_counts)


def count(name: str) -> None:
    """One more of these. Threads may lose a count against each other, which is not worth a lock."""
    _counts[name] += 1
