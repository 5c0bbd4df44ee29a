"""`qcompile::unpack` takes codes out of words: against lists of integers, in parts as in the whole, and by torch's own rules."""

from typing import Any

import pytest
import torch
from support import slow
from torch import Tensor, fx

from qcompile.formats.words import unpack
from qcompile.graph.slices import Root, Slices, pieces
from qcompile.weights.strips import is_foreign

CASES = [*((bits, "") for bits in range(2, 9)), (4, "awq")]


def packed(bits: int, order: str, rows: int = 6, columns: int = 64) -> tuple[Tensor, list[list[int]]]:
    """(words, the codes in them)"""
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=torch.Generator().manual_seed(bits)).tolist()
    return slow.int32([slow.awq_words(row) if order else slow.dense_words(row, bits) for row in codes]), codes


@pytest.mark.parametrize(("bits", "order"), CASES)
def test_codes_minus_the_offset(bits: int, order: str) -> None:
    words, codes = packed(bits, order)
    for offset in (0, 1, 1 << (bits - 1), -1):
        expected = [[(code - offset + 128) % 256 - 128 for code in row] for row in codes]
        found = unpack(words, bits=bits, rows=6, columns=64, offset=offset, order=order)
        assert found.tolist() == expected and found.dtype == torch.int8 and found.is_contiguous()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_columns_that_do_not_fill_the_last_word(bits: int) -> None:
    words, codes = packed(bits, "", columns=41)
    assert unpack(words, bits=bits, rows=6, columns=41).to(torch.uint8).tolist() == codes


def test_low_nibbles_of_bytes_come_first() -> None:
    octets = torch.tensor([[0x21, 0x43]], dtype=torch.uint8)
    assert unpack(octets, bits=4, rows=1, columns=4).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(("bits", "order"), CASES)
def test_operator_rules(bits: int, order: str) -> None:
    words, _ = packed(bits, order)
    for given in (words, words.t().contiguous().t()):
        torch.library.opcheck(unpack, (given,), {"bits": bits, "rows": 6, "columns": 64, "offset": 1, "order": order})


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_words_that_do_not_hold_the_codes_are_refused(device: str) -> None:
    words = torch.zeros((6, 8), dtype=torch.int32, device=device)
    for rows, columns in ((5, 64), (6, 65)):
        with pytest.raises(ValueError, match=rf"do not hold \[{rows}, {columns}\] codes of 4 bits"):
            unpack(words, bits=4, rows=rows, columns=columns)


@pytest.mark.parametrize(("bits", "order"), CASES)
@pytest.mark.parametrize("dim", [0, 1])
def test_parts_are_parts_of_the_whole(bits: int, order: str, dim: int) -> None:
    """Along rows any range, along columns ranges of whole words; no more of the words is read than that."""
    words, _ = packed(bits, order, 6, 128)
    whole = unpack(words, bits=bits, rows=6, columns=128, offset=3, order=order)
    graph = fx.Graph()
    source = graph.placeholder("words")
    source.meta["val"] = words
    node = graph.call_function(unpack, (source,), {"bits": bits, "rows": 6, "columns": 128, "offset": 3, "order": order})
    node.meta["val"] = whole
    asked: list[Any] = []

    def make(shape: Any) -> Tensor:
        asked.append(list(shape))
        return torch.zeros(list(shape), dtype=torch.int32)

    size = whole.shape[dim]
    slices, lazy = (Slices([Root(node, {"n": dim})], {"n": size}, {source: given}) for given in (words, make))
    for span in pieces(size, 1, slices.align("n")):
        (part,) = slices.evaluate({"n": span})
        lazy.evaluate({"n": span})
        assert torch.equal(part, whole.narrow(dim, span.start, len(span)))
    assert all(shape[dim] < words.shape[dim] for shape in asked)
    assert not is_foreign(node)
