"""Two hundred damaged files of packed weights; `make fuzz` runs on."""

from collections import Counter
from pathlib import Path

from fuzz import BAD, cache_files


def test_fixed_cases(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in range(200):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcome = cache_files.case(seed, folder)
        assert outcome.kind not in BAD, outcome.detail
        counts[outcome.kind] += outcome.cases
    assert counts["clear error"] > 150
