"""Every shell command of README, docs and bench runs as written: parsed as it stands, and run with small sizes (`make commands`: all)."""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.checkpoints import compressed_tensors_folder
from support.documented import ROOT, shown
from support.native_weights import require_kernels

from qcompile import versions
from qcompile.cli import parser

COMMANDS = list(dict.fromkeys(entry.command for entry in shown()))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BENCH = sorted(path.stem for path in (ROOT / "bench").glob("*.py"))

# Commands that are not run here, and why; they are parsed. Commands of pip are run by hand in a fresh environment before a release.
LEFT = {
    "make demo": "takes minutes; test_demo runs its parts",
    "make demo SIZE=1b": "takes minutes and gigabytes",
    "make setup": "every other target does it first",
    "make quick": "test_docs asks whether its files are there",
    "make test": "runs this",
    "make lint": "part of CI",
    "make types": "part of CI",
    "make commands": "runs this",
    "make check-wheel": "part of CI",
    "make fuzz": "runs for hours; test_fuzz runs a few hundred of its cases, and the process that runs them",
    "make fuzz MINUTES=30": "as make fuzz",
    "make fuzz GENERATOR=graphs SEED=1000": "as make fuzz",
    "make fuzz GENERATOR=kernels": "as make fuzz",
    "make fuzz GENERATOR=folders": "as make fuzz",
    "make fuzz GENERATOR=cache_files": "as make fuzz",
    "QCOMPILE_ACCEPT=1 python -m pytest tests/passes/test_fold.py": "writes the golden texts",
    "make dist": "compiles everything; part of CI",
}
# As written -> with small sizes. What stands in braces is put in: a small checkpoint, an empty folder.
QUICK = {
    "python bench/attention.py": "python bench/attention.py --rounds 2 --cold 1",
    "python bench/guards.py": "python bench/guards.py 4",
}
SLOW = {
    "python bench/step.py demo-output/llama-1b-w4a16": "python bench/step.py {folder} --context 8 --rounds 1",
    "QCOMPILE_ISA=avx2 python bench/gemm.py --kernels native.int4 --m 1,2 --budget 2": (
        "QCOMPILE_ISA=avx2 python bench/gemm.py --kernels native.int4 --m 1,2 --budget 0.01 --shapes 256x256"
    ),
    "qcompile platform": "qcompile platform",
    "qcompile platform --list": "qcompile platform --list",
    "qcompile platform --json": "qcompile platform --json",
    "python -m pytest tests/formats/test_layouts.py -q": "python -m pytest tests/formats/test_layouts.py -q -k awq",
    "python -m pytest tests/formats/test_layouts.py -q -k awq -x": "python -m pytest tests/formats/test_layouts.py -q -k awq -x",
    "qcompile kernels": "qcompile kernels",
    "qcompile explain FOLDER": "qcompile explain {folder}",
    "qcompile explain FOLDER --verbose": "qcompile explain {folder} --verbose",
    'qcompile run FOLDER --prompt "Once"': 'qcompile run {folder} --prompt "1 2" --tokens 2',  # this folder has no tokenizer
    "qcompile bench FOLDER": "qcompile bench {folder} --tokens 2 --prompt-tokens 4",
    "qcompile bench FOLDER --release": "qcompile bench {folder} --release --tokens 2 --prompt-tokens 4",
    (
        'python -m qcompile.cli.measure \'{"folder": "demo-output/llama-1b-w4a16", "way": "qcompile", "options": {"release": true}}\''
    ): (
        'python -m qcompile.cli.measure \'{{"folder": "{folder}", "way": "qcompile", "options": {{"release": true}}, '
        '"prompt_tokens": 4, "tokens": 2}}\''
    ),
    # llama.cpp is compiled when it is installed, which takes minutes; without it the benchmark says so and goes on.
    'python bench/model.py --size 1b --ways qcompile "qcompile allow_a8" --peers llama.cpp --tokens 64 --out bench-output/model': (
        'python bench/model.py --size small --ways qcompile "qcompile allow_a8" --peers llama.cpp --tokens 4 --out {out}'
        " --prompt 8 --context 8 --checkpoints {out}"
    ),
    "python bench/model.py --size 1b --peers llama.cpp --tokens 64": (
        "python bench/model.py --size small --peers llama.cpp --tokens 4 --prompt 8 --context 8 --checkpoints {out}"
    ),
    "python bench/model.py --size 1b --out bench-output/model": (
        "python bench/model.py --size small --out {out} --tokens 4 --prompt 8 --context 8 --checkpoints {out}"
    ),
    'python bench/model_run.py \'{"folder": F, "way": "qcompile", "prompt": 512, "context": 256, "tokens": 24, "logits": FILE}\'': (
        'python bench/model_run.py \'{{"folder": "{folder}", "way": "qcompile", "prompt": 8, "context": 4, "tokens": 4, '
        '"logits": "{out}/logits"}}\''
    ),
    "python bench/turns.py demo-output/llama-1b-w4a16 --ways qcompile llama.cpp --rounds 30": (
        'python bench/turns.py {folder} --ways qcompile "dense, eager" --rounds 2 --each 2 --context 8'
    ),
    "python bench/turns.py demo-output/llama-1b-w4a16 --ways qcompile llama.cpp --context 256": (
        'python bench/turns.py {folder} --ways qcompile "dense, eager" --context 8 --rounds 1 --each 1'
    ),
    "python bench/step.py demo-output/llama-1b-w4a16 --context 256": "python bench/step.py {folder} --context 8 --rounds 1",
    (
        "python bench/gemm.py --peers --shapes 4096x4096 4096x11008 2048x8192 --m 1,2,4,8,16,64,128,256,512 --budget 3"
        " --out bench-output/gemm"
    ): "python bench/gemm.py --peers --shapes 256x256 512x256 --m 1,4 --budget 0.02 --out {out}",
    (
        "python bench/gemm.py --format int4,nvfp4,mxfp4,fp8,fp8-block,int2,int3,q4_k,q6_k --shapes 4096x4096"
        " --m 1,2,16,64,256 --budget 0.8"
    ): "python bench/gemm.py --format nvfp4,fp8-block,q4_k --shapes 256x256 --m 1 --budget 0.02",
    "python bench/gemm.py --bits 8 --shapes 4096x4096 2048x8192 --m 1,8,32,128,512 --budget 2": (
        "python bench/gemm.py --bits 8 --shapes 256x256 --m 1,8 --budget 0.02"
    ),
    "python bench/gemm.py --shapes 4096x4096 4096x11008 --m 1,2,4,8,16,32,64,128,256,512 --out bench-output/gemm": (
        "python bench/gemm.py --shapes 256x256 --m 1,8 --out {out} --budget 0.02"
    ),
}
SMALL = QUICK | SLOW


class Parsed(Exception):  # noqa: N818 - no error
    """The words of a command were accepted."""


def words(command: str) -> list[str]:
    """Without settings in front and without the name of the interpreter."""
    return [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]


def is_pip(command: str) -> bool:
    return words(command)[0] == "pip"


def test_every_command_is_run_or_left_with_a_reason() -> None:
    known = {*LEFT, *SMALL}
    assert len(COMMANDS) > 20
    assert [command for command in COMMANDS if command not in known and not is_pip(command)] == []
    assert [command for command in known if command not in COMMANDS] == []


@pytest.mark.parametrize("command", SMALL, ids=lambda text: text[:60])
def test_the_small_command_is_the_same_with_other_sizes(command: str) -> None:
    def options(text: str) -> set[str]:
        return {word for word in shlex.split(text) if word.startswith("--") or re.fullmatch(r"[A-Z_]+=\S*", word)}

    small = SMALL[command]
    assert options(command) <= options(small)
    assert words(command)[:2] == words(small)[:2] or words(command)[0] == words(small)[0] == "qcompile"


@pytest.mark.parametrize("command", [command for command in COMMANDS if is_pip(command)])
def test_what_pip_is_told_to_install_exists(command: str) -> None:
    """Extras that pyproject has, releases that were tried; never a torch without a release, which would be the newest."""
    asked = [word for word in words(re.sub(r"--index-url \S+", "", command))[2:] if not word.startswith("-")]
    assert words(command)[1] == "install" and asked
    for word in asked:
        if word.startswith("."):
            extras = re.findall(r"[\w-]+", word)
            assert set(extras) <= set(PROJECT["optional-dependencies"])
            assert "--no-build-isolation" in command or "QCOMPILE_NO_KERNELS=1" in command
            continue
        found = Requirement(word)
        if found.name in ("torch", "zentorch"):
            (pin,) = found.specifier
            assert pin.operator == "=="
            assert pin.version in versions.ZENTORCH.values() or versions.untried("torch", pin.version) == ""


@pytest.mark.parametrize("command", [command for command in COMMANDS if words(command)[0] == "make"])
def test_make_has_the_target(command: str) -> None:
    target, *settings = command.split()[1:]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)
    assert all(re.search(rf"^{setting.partition('=')[0]} \?=", makefile, re.MULTILINE) for setting in settings)


def parsed(monkeypatch: pytest.MonkeyPatch, script: str, arguments: list[str]) -> None:
    """Run a script of bench until its arguments are parsed."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *(entry for entry in sys.path if Path(entry).resolve() != ROOT)])
    for name in [name for name in sys.modules if name.split(".")[0] == "bench"]:
        monkeypatch.delitem(sys.modules, name)
    parse = argparse.ArgumentParser.parse_args

    def once(self: argparse.ArgumentParser, *given: str) -> None:
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", once)
    runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize("command", [command for command in COMMANDS if "bench/" in command and "model_run" not in command])
def test_a_benchmark_takes_the_arguments_as_written(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a clone whose folder is not on Python's path, as after `pip install .`."""
    _, script, *arguments = words(command)
    with pytest.raises(Parsed):
        parsed(monkeypatch, script, arguments)


@pytest.mark.parametrize("name", [name for name in BENCH if name not in ("formats", "model_times")])  # which are no programs
def test_every_benchmark_tells_its_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed(monkeypatch, f"bench/{name}.py", ["--help"])
    assert stopped.value.code == 0 or "python bench/model_run.py" in str(stopped.value.code)


@pytest.mark.parametrize("command", [command for command in COMMANDS if words(command)[0] == "qcompile"])
def test_the_command_line_takes_the_arguments_as_written(command: str) -> None:
    parser().parse_args(words(command)[1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed_tensors_folder(tmp_path_factory.mktemp("llama"), bits=4, group=32).path


def run(command: str, folder: Path, out: Path) -> None:
    """In the clone, as a shell runs it, with the programs of this environment."""
    require_kernels()
    env = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "QCOMPILE_REST": "eager",  # compiling the rest takes most of the time and is no part of this
    }
    text = command.format(folder=folder, out=out)
    done = subprocess.run(["bash", "-c", text], check=False, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.strip()


@pytest.mark.parametrize("command", QUICK, ids=lambda text: text[:60])
def test_the_command_runs(command: str, folder: Path, tmp_path: Path) -> None:
    run(QUICK[command], folder, tmp_path)


@pytest.mark.commands
@pytest.mark.parametrize("command", SLOW, ids=lambda text: text[:60])
def test_the_slower_command_runs(command: str, folder: Path, tmp_path: Path) -> None:
    run(SLOW[command], folder, tmp_path)
