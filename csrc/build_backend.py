"""scikit-build-core, which first looks whether torch is there to build with: pip then stops before it has downloaded anything.

Under build isolation pip hides the installed torch, fetches a newer one (a CUDA build of gigabytes) while it collects what qcompile
depends on, and would learn from CMake only then that there is nothing to build against.
"""

import os
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    from packaging.requirements import Requirement
    from scikit_build_core import build as scikit_build
except ModuleNotFoundError as error:
    raise SystemExit(
        f"building qcompile without isolation needs scikit-build-core ({error}): pip install scikit-build-core"
    ) from error

ROOT = Path(__file__).resolve().parent.parent
WAY_OUT = (
    "Install torch first and build without isolation: `pip install torch==2.13.0 scikit-build-core`, then "
    "`pip install --no-build-isolation .`. Or set QCOMPILE_NO_KERNELS=1 for a pure Python build without a compiler."
)
# scikit-build-core reads the variable in the same way.
OFF = ("", "0", "false", "f", "no", "n", "off")

build_sdist = scikit_build.build_sdist
get_requires_for_build_sdist = scikit_build.get_requires_for_build_sdist


def required() -> Requirement:
    """What pyproject.toml says about torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(entry for entry in map(Requirement, project["dependencies"]) if entry.name == "torch")


def hindrance() -> str:
    """Why the kernels cannot be built against the torch that is visible here, with the way out; "" if they can, or need not."""
    if os.environ.get("QCOMPILE_NO_KERNELS", "").lower() not in OFF:
        return ""
    try:
        found = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return f"qcompile's C++ kernels are built against the installed torch, and none is visible to this build. {WAY_OUT}"
    if required().specifier.contains(found, prereleases=True):
        return ""
    return f"qcompile wants {required()}, and torch {found} is installed. {WAY_OUT}"


def _checked(name: str) -> Callable[..., Any]:
    hook: Callable[..., Any] = getattr(scikit_build, name)

    def checked(*arguments: Any, **named: Any) -> Any:
        if sentence := hindrance():
            raise SystemExit(sentence)
        return hook(*arguments, **named)

    return checked


STEPS = ("get_requires_for_build_{}", "prepare_metadata_for_build_{}", "build_{}")
HOOKS = [step.format(kind) for step in STEPS for kind in ("wheel", "editable")]
globals().update({name: _checked(name) for name in HOOKS if hasattr(scikit_build, name)})
