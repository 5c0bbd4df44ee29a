"""Generated code that reads a name it has not set, or has deleted, is found before it runs."""

import pytest
from torch import fx

from qcompile.errors import GeneratedCodeError
from qcompile.run.regions import stitch
from qcompile.run.regions.cut import Plan
from qcompile.run.regions.defined import undefined


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (["b = a", "return b"], []),
        (["return found"], ["f: found"]),
        (["b = found", "found = a", "return b"], ["f: found"]),
        (["del a", "return a"], ["f: a"]),
        (["b, c = known(a)", "del b", "return (c, b)"], ["f: b"]),
        (["if known(a) is None:", "    b = a", "return len(b)"], []),
        (["if b:", "    return a", "return g(*a)"], ["f: b"]),
        (["b = [a, *found.packed[0]]", "return b"], ["f: found"]),
        (["known = known(a)", "return known"], ["f: known"]),
    ],
)
def test_what_is_missing(body: list[str], missing: list[str]) -> None:
    text = "\n".join(["def g(a):", "    return a", "def f(a):", *(f"    {line}" for line in body)])
    assert undefined(text, ["known"]) == missing


def test_such_code_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stitch, "source", lambda name, *_, **__: f"def {name}():\n    return found\n")
    graph = fx.Graph()
    graph.output(())
    with pytest.raises(GeneratedCodeError, match="careful: found, call: found"):
        stitch.stitch([], Plan((), (), ()), [], [])
