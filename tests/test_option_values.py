"""Names and values of options: read from the program and the environment, wrong ones are errors that say what is expected."""

from pathlib import Path
from typing import Any

import pytest

from qcompile.errors import OptionError, UnknownNameError
from qcompile.options import Options, resolve
from qcompile.targets.registry import settings


def test_unknown_options_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown option 'kernel'. Did you mean 'kernels'.*fallback.*verify"):
        resolve({"kernel": ["native"]})


def test_unknown_kernels_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"'zentorc'. Did you mean 'zentorch'.*native\.int4.*reference"):
        settings({"disable": ["zentorc"]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rest", "tvm"),
        ("fallback", "sparse"),
        ("verify", True),
        ("allow_a8", "maybe"),
        ("fuel", -1),
        ("kernels", 3),
        ("dump", 5),
        ("cache_dir", 5),
        ("measure", "perhaps"),
        ("tune", 2),
        ("release", 1),
        ("regional", 1),
    ],
)
def test_wrong_values_say_what_is_expected(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"option '{name}': expected .*, got "):
        resolve({name: value})


ENVIRONMENT: dict[str, tuple[str, Any]] = {
    "kernels": ("native, reference", ("native", "reference")),
    "disable": ("zentorch", ("zentorch",)),
    "rest": ("eager", "eager"),
    "fallback": ("packed", "packed"),
    "verify": ("off", "off"),
    "allow_a8": ("1", True),
    "dump": ("/tmp/somewhere", Path("/tmp/somewhere")),
    "platform": ("zen4", "zen4"),
    "release": ("yes", True),
    "regional": ("no", False),
    "cache_dir": ("/tmp/cache", Path("/tmp/cache")),
    "measure": ("0", False),
    "tune": ("1", True),
    "check": ("true", True),
    "fuel": ("3", 3),
}


def test_every_option_has_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(ENVIRONMENT) == set(Options.__dataclass_fields__)
    for name, (text, _) in ENVIRONMENT.items():
        monkeypatch.setenv(f"QCOMPILE_{name.upper()}", text)
    assert resolve() == Options(**{name: value for name, (_, value) in ENVIRONMENT.items()})
    assert resolve({"fuel": 5}).fuel == 5
