"""Fuzzing: random problems compared with what they mean. Each generator is a module with `case(seed, folder) -> Outcome`."""

from dataclasses import dataclass

FINE = ("right", "declined", "clear error")
BAD = ("wrong", "unclear error", "crash", "silent")
GENERATORS = ("graphs", "kernels", "folders", "cache_files")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed. kind: one of FINE or BAD; detail: what to read when it is bad; cases: how many problems it held."""

    kind: str
    detail: str = ""
    cases: int = 1

    def __post_init__(self) -> None:
        assert self.kind in (*FINE, *BAD), self.kind
