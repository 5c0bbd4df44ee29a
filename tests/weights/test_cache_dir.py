"""Option cache_dir: the next process maps what the last one packed, and is never given anything else."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.packed_linears import Stack, packed_linear
from support.spellings import K, N
from torch import Tensor

from qcompile.hardware import platform
from qcompile.meaning import sqnr_db
from qcompile.targets.registry import find, kernels
from qcompile.weights import disk_cache, fingerprint, mapped_file
from qcompile.weights.cache import STORE
from qcompile.weights.memory import HUGE_PAGE
from qcompile.weights.recipe import Recipe

X = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
NATIVE = find("native.int4").missing(platform())
needs_native = pytest.mark.skipif(bool(NATIVE), reason="; ".join(NATIVE) or "-")


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels' recipes that were evaluated, so not found on disk."""
    found: list[str] = []
    evaluate = Recipe.evaluate

    def counted(self: Recipe, leaves: Any) -> Any:
        if any(name in self.key for name in ("int4_pack", "int4pack", "repack")):
            found.append(self.paths[0])
        return evaluate(self, leaves)

    monkeypatch.setattr(Recipe, "evaluate", counted)
    return found


def next_process() -> None:
    torch._dynamo.reset()
    STORE.results.entries.clear()


def stack() -> Stack:
    torch.manual_seed(7)
    return Stack(1)


def run(model: Any, folder: Path | None, kernel: str = "native.int4", x: Tensor = X, **options: Any) -> Tensor:
    options = {"rest": "eager", "kernels": [kernel], "fallback": "error", "cache_dir": folder, **options}
    with torch.no_grad():
        result: Tensor = torch.compile(model, backend="qcompile", options=options)(x)
    return result


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def mapped_from(tensor: Tensor, folder: Path) -> bool:
    """Whether the tensor's bytes are those of a file in the folder, by the kernel's own list of mappings."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return str(folder) in line
    return False


@pytest.mark.parametrize("kernel", ["native.int4", "zentorch.woq_linear", "torch.int4pack"])
def test_the_next_process_maps_what_this_one_packed(kernel: str, tmp_path: Path, packings: list[str]) -> None:
    if reasons := find(kernel).missing(platform()):
        pytest.skip("; ".join(reasons))
    want = run(stack(), None, kernel)
    next_process()
    packings.clear()
    assert torch.equal(run(stack(), tmp_path, kernel), want)
    made = len(packings)
    assert made == len(files(tmp_path)) == 3  # gate and up are one
    next_process()
    model = stack()
    assert torch.equal(run(model, tmp_path, kernel), want)
    assert len(packings) == made
    packed = [tensor for result in STORE.results.values() if result.file for tensor in result.values]
    assert packed and all(mapped_from(tensor, tmp_path) and tensor.data_ptr() % 64 == 0 for tensor in packed)


@needs_native
def test_the_same_weights_under_other_names_are_the_same_file(tmp_path: Path, packings: list[str]) -> None:
    torch.manual_seed(1)
    first = packed_linear(N, 64, path="first")
    run(first, tmp_path)
    torch.manual_seed(1)
    run(packed_linear(N, 64, path="second"), tmp_path)
    assert len(packings) == len(files(tmp_path)) == 1


def _another_bit(model: Stack, patch: pytest.MonkeyPatch) -> None:
    model.layers[0].down.weight_packed[5, 3] ^= 1 << 9  # type: ignore[union-attr,operator]


def _other_code(model: Stack, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fingerprint, "of_code", lambda: "another")


def _other_torch(model: Stack, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "__version__", "2.99.0")


def _other_layout(model: Stack, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(disk_cache.Shelf, "of", lambda kernel, options: disk_cache.Shelf(options.cache_dir, "native 0"))


@needs_native
@pytest.mark.parametrize(
    ("change", "packed"), [(_another_bit, 1), (_other_code, 3), (_other_torch, 3), (_other_layout, 3)], ids=lambda v: str(v)[:14]
)
def test_what_was_made_from_or_by_something_else_is_not_taken(
    change: Callable[[Stack, pytest.MonkeyPatch], None],
    packed: int,
    tmp_path: Path,
    packings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(stack(), tmp_path)
    next_process()
    packings.clear()
    model = stack()
    change(model, monkeypatch)
    assert sqnr_db(model(X), run(model, tmp_path)) > 35
    assert len(packings) == packed and len(files(tmp_path)) == 3 + packed


def _cut(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 1])


def _cut_to_nothing(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(bytes(content))


def _flip_code(path: Path, other: Path) -> None:
    _flip(path, 4096 + 64 + 77)


def _flip_last(path: Path, other: Path) -> None:
    _flip(path, -1)


def _zeros(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 512] + bytes(512))


def _header(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"U8"', b'"I8"', 1))


def _noise(path: Path, other: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def _someone_elses(path: Path, other: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415 - only this case needs it

    save_file({"0": torch.zeros(4224, dtype=torch.uint8)}, path)


def _another_weight(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


@needs_native
@pytest.mark.parametrize(
    "damage",
    [_cut, _cut_to_nothing, _flip_code, _flip_last, _zeros, _header, _noise, _someone_elses, _another_weight],
    ids=lambda damage: damage.__name__,
)
def test_a_file_that_is_not_right_is_made_again(
    damage: Callable[[Path, Path], None], tmp_path: Path, packings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    want = run(stack(), tmp_path)
    first, other, _ = files(tmp_path)
    right = first.read_bytes()
    first.chmod(0o600)
    damage(first, other)
    assert first.read_bytes() != right
    next_process()
    packings.clear()
    with caplog.at_level(logging.WARNING, "qcompile"):
        assert torch.equal(run(stack(), tmp_path), want)
    assert len(packings) == 1
    assert first.read_bytes() == right
    (message,) = [record.getMessage() for record in caplog.records if record.name == "qcompile.weights.disk_cache"]
    assert str(first) in message and "is made again: it" in message


@needs_native
def test_a_file_in_order_with_wrong_weights_does_not_pass_the_check_by_value(tmp_path: Path, packings: list[str]) -> None:
    torch.manual_seed(3)
    model = packed_linear(N, 64)
    want = run(model, tmp_path)
    (path,) = files(tmp_path)
    key = path.stem
    (packed,) = mapped_file.read(path, key)
    wrong = packed.clone()
    wrong[64:] = wrong[64:].flip(0)
    del packed
    mapped_file.write(path, key, [wrong], {})
    next_process()
    packings.clear()
    assert torch.equal(run(model, tmp_path), want)
    assert len(packings) == 1
    assert not files(tmp_path)  # the next process packs it anew


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@needs_native
def test_a_full_disk_is_said_once_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    want = run(stack(), None)
    next_process()
    monkeypatch.setattr("qcompile.weights.mapped_file.os.replace", full)
    with caplog.at_level(logging.WARNING, "qcompile"):
        assert torch.equal(run(stack(), tmp_path), want)
    assert not list(tmp_path.iterdir())
    (message,) = [record.getMessage() for record in caplog.records if record.name == "qcompile.weights.disk_cache"]
    assert "No space left" in message and str(tmp_path) in message and "cache_dir" in message


@needs_native
def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING, "qcompile"):
        run(stack(), tmp_path / "file" / "below")
    assert any("cannot be written" in record.getMessage() for record in caplog.records)


@needs_native
def test_a_weight_that_keeps_changing_does_not_fill_the_disk(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = packed_linear(N, 64)
    compiled = torch.compile(
        model, backend="qcompile", options={"rest": "eager", "kernels": ["native.int4"], "cache_dir": tmp_path}
    )
    with torch.no_grad():
        compiled(X)
        for _ in range(3):
            model.weight_packed.random_(-(2**31), 2**31 - 1)  # type: ignore[union-attr,operator]
            assert sqnr_db(model(X), compiled(X)) > 40
    assert len(files(tmp_path)) == 1


@needs_native
def test_released_raw_weights(tmp_path: Path, packings: list[str]) -> None:
    want = run(stack(), tmp_path)
    next_process()
    packings.clear()
    assert torch.equal(run(stack(), tmp_path, release=True), want)
    assert not packings


def test_handles_of_this_process_are_never_stored(tmp_path: Path) -> None:
    run(stack(), tmp_path, "reference.quantized_linear")
    assert not files(tmp_path)
    for row in kernels().values():
        assert row.layout is None or (row.layout() and row.layout() == row.layout())
    assert kernels()["torch.qlinear_int8"].layout is None  # finds oneDNN's own tensor by its address


@needs_native
def test_native_layout_is_the_one_of_the_packed_header() -> None:
    from qcompile.targets.native_ops import PACKED_LAYOUT  # noqa: PLC0415 - where the library is built

    packed = torch.ops.qcompile.native_int4_pack(torch.zeros(16, 32, dtype=torch.int8), torch.ones(16, 1), None, 32)
    assert int(packed[8:12].view(torch.int32)) == PACKED_LAYOUT


def test_a_mapped_weight_of_a_library_that_caches_by_address_is_retired(tmp_path: Path) -> None:
    """Its addresses are not used again after its death; those of an ordinary one may be."""
    path = tmp_path / "x.safetensors"
    mapped_file.write(path, "key", [torch.arange(HUGE_PAGE, dtype=torch.int32)], {})
    seen: set[int] = set()
    for _ in range(20):
        (tensor,) = mapped_file.read(path, "key", retire=True)
        assert tensor.data_ptr() not in seen and int(tensor[-1]) == HUGE_PAGE - 1
        seen.add(tensor.data_ptr())
        del tensor
    (plain,) = mapped_file.read(path, "key")
    address = plain.data_ptr()
    del plain
    assert address not in {int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text().splitlines()}
    assert K and all(_inaccessible(address) for address in seen)


def _inaccessible(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return rights.startswith("---")
    return False
