"""What a quantized weight means: its formula lives on these types. That of activations: qcompile.activations."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from qcompile.codebooks import CODE_BOOKS, NUMBERS
from qcompile.errors import WeightError


class Operands(NamedTuple):
    """The tensors of a quantized weight (or the graph nodes that stand for them).

    codes int8 [N, K]; scales float [N, G]; zeros int8 [N, G] or None; perm int64 [K] or None; bias float [N] or None;
    act_scale / act_zero: the static activation scale (float32, one element) and zero point, or None;
    outer: float [N, H] or None, what the scales are multiplied with (NVFP4: E4M3 for each block, float32 for the tensor; k-quants:
    integers for each group, float16 for 256 values);
    offsets: float or 8-bit integers [N, G] or None, added to every weight of a group, times outer_offset, float [N, H] or None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    perm: Tensor | None = None
    bias: Tensor | None = None
    act_scale: Tensor | None = None
    act_zero: Tensor | None = None
    outer: Tensor | None = None
    offsets: Tensor | None = None
    outer_offset: Tensor | None = None

    def rows(self, part: slice) -> "Operands":
        """Those of a range of outputs."""
        cut = {name: item[part] for name in ALONG_N if (item := getattr(self, name)) is not None}
        return self._replace(**cut)


# The operands of which a range of outputs needs a range.
ALONG_N = ("codes", "scales", "zeros", "bias", "outer", "offsets", "outer_offset")

# The dtypes that scales of a weight may have; scales stored in others (E5M2, float64) are widened or rounded to float32 first.
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK_SCALE_DTYPES = (torch.float8_e4m3fn, torch.float8_e8m0fnu)
# Of scales and offsets that are only the inner of two levels.
INNER_DTYPES = (torch.int8, torch.uint8)


def values_of(codes: Tensor, codebook: str) -> Tensor:
    """The values that codes int8 stand for, float32 of the same shape: themselves, entries of a book, or numbers of 8 bits."""
    if codebook in NUMBERS:
        numbers: Tensor = codes.view(NUMBERS[codebook]).to(torch.float32)
        return numbers
    if codebook:
        return torch.tensor(CODE_BOOKS[codebook], dtype=torch.float32, device=codes.device)[codes.long()]
    return codes.to(torch.float32)


def all_finite(tensor: Tensor) -> bool:
    """Whether nothing is NaN or infinite, for every dtype: float8 has no `isfinite` of its own, and integers and float4 no NaN."""
    if not tensor.is_floating_point() or tensor.dtype is getattr(torch, "float4_e2m1fn_x2", None):
        return True
    wide = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(wide).all())


def is_permutation(perm: Tensor) -> bool:
    """Whether the integers perm [K] are 0 .. K - 1 in some order."""
    return torch.equal(perm.long().sort().values, torch.arange(perm.numel(), dtype=torch.int64, device=perm.device))


def row_pieces(n: int, k: int, elements: int = 1 << 22) -> Iterator[slice]:
    """Slices of the rows of a weight [n, k], of about so many elements each: in float32 a whole one would be by far the largest."""
    rows = max(1, elements // max(k, 1))
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def group_count(k: int, group: int) -> int:
    """G, the groups that cover K; where `group` does not divide K, the last one is short."""
    return -(-k // group)


def in_groups(values: Tensor, group: int) -> Tensor:
    """[N, K] -> [N, G, group]; a short last group is filled up with its last value, which changes no least and no largest."""
    missing = -values.shape[1] % group
    if missing:
        values = torch.cat((values, values[:, -1:].expand(values.shape[0], missing)), 1)
    grouped: Tensor = values.unflatten(1, (-1, group))
    return grouped


def ungrouped(values: Tensor, k: int) -> Tensor:
    """[N, G, group] -> [N, K], the inverse of `in_groups`."""
    return values.flatten(1)[:, :k]


def groups_each(group: int, outer_group: int) -> int:
    """How many groups share an outer scale, 0 where all of an output do (outer_group 0)."""
    return group_count(outer_group, group)


def scales_of(scales: Tensor, outer: Tensor | None, each: int = 0) -> Tensor:
    """What the values are multiplied with, float32 [N, G]: both levels, where there are two; each: `groups_each`.

    So, too, what is added, of offsets and outer offsets.
    """
    wide = scales.to(torch.float32)
    if outer is None:
        return wide
    level = outer.to(torch.float32)
    return wide * (level.repeat_interleave(each, 1)[:, : scales.shape[1]] if each else level)


def dequantize(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    codebook: str = "",
    dtype: torch.dtype = torch.float32,
    outer: Tensor | None = None,
    offsets: Tensor | None = None,
    outer_offset: Tensor | None = None,
    outer_group: int = 0,
) -> Tensor:
    """W[n, k] = (value(codes[n, k]) - zeros[n, g]) * scales[n, g] * outer[n, h] + offsets[n, g] * outer_offset[n, h], with
    g = k // group and h = k // outer_group, in float32, returned as `dtype`.

    codes int8 [N, K]; scales [N, G]; zeros int8 [N, G] or None (= 0); offsets [N, G] or None (= 0); outer and outer_offset float
    [N, H] or None (= 1), [N, 1] with outer_group 0; value() is `values_of`.
    """
    grouped, each = in_groups(values_of(codes, codebook), group), groups_each(group, outer_group)
    if zeros is not None:
        grouped = grouped - zeros.to(torch.float32)[:, :, None]
    grouped = grouped * scales_of(scales, outer, each)[:, :, None]
    if offsets is not None:
        grouped = grouped + scales_of(offsets, outer_offset, each)[:, :, None]
    return ungrouped(grouped, codes.shape[1]).to(dtype)


def dense_of(weight: Operands, group: int, codebook: str = "", outer_group: int = 0) -> Tensor:
    """`dequantize` of operands: float32 [N, K], columns as they are stored."""
    return dequantize(*weight[:3], group, codebook, torch.float32, *weight[7:], outer_group)


def is_signed(bits: int, *, zeros: bool, offsets: bool, codebook: bool) -> bool:
    """Whether codes are -2^(bits-1) .. 2^(bits-1)-1 and not 0 .. 2^bits-1: of 8 bits always, of fewer without zeros and offsets."""
    return not codebook and (bits == 8 or not (zeros or offsets))


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """The canonical quantized weight of `y = x @ W.T`.

    W[n, perm[k]] = (value(codes[n, k]) - zeros[n, g]) * scales[n, g] * outer[n, h] + offsets[n, g] * outer_offset[n, h]
    with g = k // group and h = k // outer_group

    codes   int8 [N, K]. Signed (-2^(bits-1) .. 2^(bits-1)-1) when zeros and offsets are None. With either and bits < 8 unsigned
            (0 .. 2^bits-1); signed codes (and zeros) are accepted and mean the same (`normalized` shifts them).
            With a code book: the index of the entry (0 .. 15), or the bits of a number (NaN and infinity are none).
    scales  float32, bfloat16, float16, float8_e4m3fn or float8_e8m0fnu [N, G], G = ceil(K / group). int8 or uint8 with outer.
    outer   float32, bfloat16 or float16 [N, H] or None (= 1): the second level of scales, H = ceil(K / outer_group).
    zeros   int8 [N, G] or None (= 0). Unsigned zeros may be 2^bits, one above the largest code (GPTQ v1).
    bits    1 .. 8; group: values of K that share a scale (K itself: one scale per output channel). It need not divide K: the
            last group is then short.
    perm    int [K] or None. Act-order: stored column k is column perm[k] of the layer's input, y = x[:, perm] @ W_stored.T.
    codebook  "" (integers: the value is the code), a name in CODE_BOOKS (the code is the index of an entry) or in NUMBERS (8 bits:
            the code is the number's own bits).
    offsets float32, bfloat16 or float16 [N, G] or None (= 0): added to every weight of a group. int8 or uint8 with outer_offset.
    outer_offset  as outer, for the offsets.
    outer_group  values of K that share an outer scale, a multiple of group; 0: all of them, [N, 1].
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    bits: int = 4
    group: int = 128
    perm: Tensor | None = None
    codebook: str = ""
    outer: Tensor | None = None
    offsets: Tensor | None = None
    outer_offset: Tensor | None = None
    outer_group: int = 0

    @property
    def n(self) -> int:
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        return self.codes.shape[1]

    def check(self) -> None:
        """Raise WeightError if shapes, dtypes or ranges contradict the formula above."""
        self.check_form()
        for name in ("scales", "outer", "offsets", "outer_offset"):
            tensor = getattr(self, name)
            if tensor is not None and not all_finite(tensor):
                raise WeightError(name, "finite values", "NaN or infinity")
        if self.perm is not None and not (self.perm.numel() == self.k and is_permutation(self.perm)):
            raise WeightError("perm", f"a permutation of 0 .. {self.k - 1}", "repeated or missing indices")
        self._check_ranges()

    def check_form(self) -> None:
        """The same without looking at values, which the tensors need not have."""
        if self.codes.dim() != 2 or self.codes.dtype != torch.int8:
            raise WeightError("codes", "int8 [N, K]", f"{self.codes.dtype} {list(self.codes.shape)}")
        if not 1 <= self.bits <= 8:
            raise WeightError("bits", "1 to 8", str(self.bits))
        if not 1 <= self.group <= max(self.k, 1):
            raise WeightError("group", f"1 to K={self.k}", str(self.group))
        if self.outer_group and self.outer_group != self.k and (self.outer_group < 0 or self.outer_group % self.group):
            raise WeightError("outer_group", f"0, K or a multiple of group={self.group}", str(self.outer_group))
        groups = [self.n, group_count(self.k, self.group)]
        outers = [self.n, group_count(self.k, self.outer_group) if self.outer_group else 1]
        known = "float32, bfloat16, float16, float8_e4m3fn or float8_e8m0fnu"
        wide = (*SCALE_DTYPES, *BLOCK_SCALE_DTYPES, torch.float64)
        _check_kind("scales", self.scales, groups, wide if self.outer is None else (*wide, *INNER_DTYPES), known)
        if self.outer is not None:
            _check_kind("outer", self.outer, outers, SCALE_DTYPES, "float32, bfloat16 or float16")
        if self.offsets is not None:
            floats = SCALE_DTYPES if self.outer_offset is None else (*SCALE_DTYPES, *INNER_DTYPES)
            _check_kind("offsets", self.offsets, groups, floats, "float32, bfloat16 or float16")
            if self.codebook:
                raise WeightError("offsets", "None with a code book", f"offsets and the code book {self.codebook!r}")
        if self.outer_offset is not None:
            if self.offsets is None:
                raise WeightError("outer_offset", "None without offsets", f"{self.outer_offset.dtype} without offsets")
            _check_kind("outer_offset", self.outer_offset, outers, SCALE_DTYPES, "float32, bfloat16 or float16")
        if self.zeros is not None and (list(self.zeros.shape) != groups or self.zeros.dtype != torch.int8):
            raise WeightError("zeros", f"int8 {groups}", f"{self.zeros.dtype} {list(self.zeros.shape)}")
        self._check_book()

    def _check_book(self) -> None:
        if self.codebook and self.codebook not in CODE_BOOKS and self.codebook not in NUMBERS:
            raise WeightError("codebook", f"'' or one of {', '.join((*CODE_BOOKS, *NUMBERS))}", repr(self.codebook))
        if self.codebook in NUMBERS and (self.bits != 8 or self.zeros is not None):
            zeros = "" if self.zeros is None else " with zero points"
            raise WeightError("codebook", "8 bits without zero points", f"{self.bits} bits{zeros}")

    def _check_ranges(self) -> None:
        if self.codebook in NUMBERS and not all_finite(self.codes.view(NUMBERS[self.codebook])):
            raise WeightError("codes", f"finite numbers in {self.codebook.upper()}", "NaN or infinity")
        if self.codes.numel() == 0 or self.bits == 8:
            return
        low, high = (int(v) for v in torch.aminmax(self.codes))
        signed = low < 0 or self._is_signed()
        least, most = (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1) if signed else (0, (1 << self.bits) - 1)
        if low < least or high > most:
            raise WeightError("codes", f"{least} .. {most} ({self.bits} bits)", f"{low} .. {high}")
        if self.zeros is not None:
            zlow, zhigh = (int(v) for v in torch.aminmax(self.zeros))
            if zlow < least or zhigh > most + 1:
                raise WeightError("zeros", f"{least} .. {most + 1} ({self.bits} bits)", f"{zlow} .. {zhigh}")

    def _is_signed(self) -> bool:
        there = self.zeros is not None, self.offsets is not None
        return is_signed(self.bits, zeros=there[0], offsets=there[1], codebook=bool(self.codebook))

    def normalized(self) -> "QuantizedWeight":
        """The same weight with unsigned codes if it has zero points or offsets and fewer than 8 bits; otherwise itself."""
        if self.codebook or self._is_signed() or self.codes.numel() == 0:
            return self
        if int(self.codes.min()) >= 0 and (self.zeros is None or int(self.zeros.min()) >= 0):
            return self
        offset = 1 << (self.bits - 1)
        zeros = torch.zeros_like(self.scales, dtype=torch.int8) if self.zeros is None else self.zeros
        return replace(self, codes=self.codes + offset, zeros=zeros + offset)

    @property
    def operands(self) -> Operands:
        """Its tensors."""
        shift = self.outer, self.offsets, self.outer_offset
        return Operands(self.codes, self.scales, self.zeros, self.perm, None, None, None, *shift)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W as a dense [N, K] tensor in the layer's own column order (act-order undone)."""
        stored = dense_of(self.operands, self.group, self.codebook, self.outer_group).to(dtype)
        if self.perm is None:
            return stored
        dense = torch.empty_like(stored)
        dense[:, self.perm.long()] = stored
        return dense


def _check_kind(name: str, tensor: Tensor, shape: list[int], dtypes: tuple[torch.dtype, ...], known: str) -> None:
    """Raise WeightError unless a tensor of scales or offsets has this shape and one of these dtypes."""
    if list(tensor.shape) != shape or tensor.dtype not in dtypes:
        levels = "" if tensor.dtype not in INNER_DTYPES or tensor.dtype in dtypes else " (integers are the inner of two levels)"
        raise WeightError(name, f"{known} {shape}{levels}", f"{tensor.dtype} {list(tensor.shape)}")


# What a check by value says: "" or the sentence why not, and the ratio of signal to noise in dB, where it was measured.
Verdict = tuple[str, float | None]


def sqnr_db(signal: Tensor, other: Tensor) -> float:
    """Signal to quantization noise in dB, 10 log10(sum s^2 / sum (s - o)^2); inf when equal, nan when either has NaN."""
    both = Noise()
    both.add(signal, other)
    return both.db


class Noise:
    """`sqnr_db` of a result that comes in several parts, and the first output that is lost altogether.

    rows: the input [M, K], if outputs are looked at one by one: a channel of small weights does not show in the whole. Each row
    counts by its own size. lost: the number of the first output of less than 14 dB, None if there is none.
    """

    _LOST = 0.04

    def __init__(self, rows: Tensor | None = None) -> None:
        self.noise, self.power = 0.0, 0.0
        self.lost: int | None = None
        self._sizes = None if rows is None else rows.to(torch.float64).square().sum(-1, keepdim=True).clamp(min=1e-300)

    def add(self, signal: Tensor, other: Tensor, begin: int = 0) -> None:
        """One more part; where outputs are looked at one by one, [M, N'] of the outputs from `begin` on."""
        wide = signal.to(torch.float64)
        noise, power = (wide - other.to(torch.float64)).square(), wide.square()
        self.noise += float(noise.sum())
        self.power += float(power.sum())
        if self._sizes is None:
            return
        wrong = ~((noise / self._sizes).sum(0) <= (power / self._sizes).sum(0) * self._LOST)
        if self.lost is None and bool(wrong.any()):
            self.lost = begin + int(wrong.nonzero()[0])

    @property
    def db(self) -> float:
        """As `sqnr_db`: inf when equal, nan when either has NaN."""
        if not math.isfinite(self.noise + self.power):
            return math.nan
        if self.noise == 0.0:
            return math.inf
        return 10 * math.log10(self.power / self.noise) if self.power else -math.inf
