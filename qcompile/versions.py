"""Which releases qcompile was tried with, of torch and of the libraries around it; what to say about others, in one sentence."""

import re
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata

from torch import nn

from qcompile.errors import UNTRIED_VERSION, UnsupportedVersionError

# Distribution -> first release tried, first one not tried. pyproject.toml and the table in README say the same (a test compares).
TRIED = {
    "torch": ((2, 13), (2, 16)),
    "transformers": ((5, 20), (5, 25)),
    "compressed-tensors": ((0, 15), (0, 21)),
}
# torch's minor release -> the release of zentorch that is built for it; it loads with no other.
ZENTORCH = {"2.13": "2.13.0.2", "2.14": "2.14.0.1"}

_said: set[str] = set()


def minor(version: str) -> str:
    """ "2.13" for "2.13.0+cpu"; a text without numbers stays as it is."""
    found = re.match(r"\d+\.\d+", version)
    return found.group() if found else version


def installed(library: str) -> str:
    """The installed release of a distribution, "" if there is none; nothing is imported."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def tried(library: str) -> str:
    """The releases of a library that were tried, as text: "2.13 to 2.15"."""
    (major, first), (_, end) = TRIED[library]
    return f"{major}.{first} to {major}.{end - 1}"


def untried(library: str, version: str | None = None) -> str:
    """One sentence if a release (by default the installed one) is none of those that were tried; "" if it is, or none is there."""
    version = installed(library) if version is None else version
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return ""
    first, end = TRIED[library]
    if first <= (int(found[1]), int(found[2])) < end:
        return ""
    wanted = ".".join(map(str, first)), ".".join(map(str, end))
    command = f'pip install "{library}>={wanted[0]},<{wanted[1]}"'
    return UNTRIED_VERSION.format(library=library, tried=tried(library), version=version, command=command)


def warn_if_untried(library: str, version: str | None = None) -> None:
    """Say it once in a process, as a warning."""
    sentence = untried(library, version)
    if sentence and sentence not in _said:
        _said.add(sentence)
        warnings.warn(sentence, stacklevel=3)


def warn_about_libraries_of(model: nn.Module) -> None:
    """The same for the libraries whose modules a model has."""
    owners = {type(module).__module__.partition(".")[0] for module in model.modules()}
    if "transformers" in owners:
        warn_if_untried("transformers")
    if "compressed_tensors" in sys.modules and any(hasattr(module, "quantization_scheme") for module in model.modules()):
        warn_if_untried("compressed-tensors")


@contextmanager
def blamed(library: str) -> Generator[None]:
    """An untried release is mentioned once, and what fails inside for want of a name or argument says that first.

    Raises UnsupportedVersionError; with a release that was tried, errors pass as they are.
    """
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        sentence = untried(library)
        if not sentence:
            raise
        raise UnsupportedVersionError(sentence, error) from error
    warn_if_untried(library)
