"""What a quantized linear means: the weight's formula and the activation's formula live on these types."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from qcompile.errors import WeightError
from qcompile.float_rounding import FLOAT_KINDS, rounded

# OCP MX specification 1.0, table 5 (E2M1): index = 3 low bits, bit 3 is the sign.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# Quantiles of a normal distribution with an exact zero: QLoRA (arXiv 2305.14314), appendix E, as float32 holds them.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# FP4 of bitsandbytes (docs, "4-bit quantization"): its own subnormal, sign in bit 3, all divided by the largest value.
FP4 = tuple(sign * value / 12.0 for sign in (1.0, -1.0) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
# ggml, kvalues_iq4nl (gguf 0.19, quants.py).
IQ4_NL = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)
CODE_BOOKS: dict[str, tuple[float, ...]] = {"e2m1": E2M1, "nf4": NF4, "fp4": FP4, "iq4_nl": IQ4_NL}
# OCP 8-bit floating point specification: codes that are the numbers' own bits.
NUMBERS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


class Operands(NamedTuple):
    """The tensors of a quantized weight (or the graph nodes that stand for them).

    codes int8 [N, K]; scales float [N, G]; zeros int8 [N, G] or None; perm int64 [K] or None; bias float [N] or None;
    act_scale / act_zero: the static activation scale (float32, one element) and zero point, or None;
    outer: float32 [N, 1] or None, what the scales are multiplied with (NVFP4: E4M3 for each block, float32 for the tensor).
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    perm: Tensor | None = None
    bias: Tensor | None = None
    act_scale: Tensor | None = None
    act_zero: Tensor | None = None
    outer: Tensor | None = None


ALONG_N = ("codes", "scales", "zeros", "bias", "outer")  # the operands of which a range of outputs needs a range

# The dtypes that scales of a weight may have; scales stored in others (E5M2, float64) are widened or rounded to float32 first.
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK_SCALE_DTYPES = (torch.float8_e4m3fn, torch.float8_e8m0fnu)


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


def scales_of(scales: Tensor, outer: Tensor | None) -> Tensor:
    """What the values are multiplied with, float32 [N, G]: both levels, where there are two."""
    wide = scales.to(torch.float32)
    return wide if outer is None else wide * outer


def dequantize(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    codebook: str = "",
    dtype: torch.dtype = torch.float32,
    outer: Tensor | None = None,
) -> Tensor:
    """W[n, k] = (value(codes[n, k]) - zeros[n, k // group]) * scales[n, k // group] * outer[n], in float32, returned as `dtype`.

    codes int8 [N, K]; scales [N, G]; zeros int8 [N, G] or None (= 0); outer float32 [N, 1] or None (= 1); value() is `values_of`.
    """
    grouped = in_groups(values_of(codes, codebook), group)
    if zeros is not None:
        grouped = grouped - zeros.to(torch.float32)[:, :, None]
    return ungrouped(grouped * scales_of(scales, outer)[:, :, None], codes.shape[1]).to(dtype)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """The canonical quantized weight of `y = x @ W.T`.

    W[n, perm[k]] = (value(codes[n, k]) - zeros[n, k // group]) * scales[n, k // group] * outer[n]

    codes   int8 [N, K]. Signed (-2^(bits-1) .. 2^(bits-1)-1) when zeros is None. With zeros and bits < 8 unsigned
            (0 .. 2^bits-1); a signed pair (codes, zeros) is accepted and means the same (`normalized` shifts it).
            With a code book: the index of the entry (0 .. 15), or the bits of a number (NaN and infinity are none).
    scales  float32, bfloat16, float16, float8_e4m3fn or float8_e8m0fnu [N, G], G = ceil(K / group).
    outer   float32 [N, 1] or None (= 1): the second level of scales.
    zeros   int8 [N, G] or None (= 0). Unsigned zeros may be 2^bits, one above the largest code (GPTQ v1).
    bits    2 .. 8; group: values of K that share a scale (K itself: one scale per output channel). It need not divide K: the
            last group is then short.
    perm    int [K] or None. Act-order: stored column k is column perm[k] of the layer's input, y = x[:, perm] @ W_stored.T.
    codebook  "" (integers: the value is the code), a name in CODE_BOOKS (the code is the index of an entry) or in NUMBERS (8 bits:
            the code is the number's own bits).
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    bits: int = 4
    group: int = 128
    perm: Tensor | None = None
    codebook: str = ""
    outer: Tensor | None = None

    @property
    def n(self) -> int:
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        return self.codes.shape[1]

    def check(self) -> None:
        """Raise WeightError if shapes, dtypes or ranges contradict the formula above."""
        if self.codes.dim() != 2 or self.codes.dtype != torch.int8:
            raise WeightError("codes", "int8 [N, K]", f"{self.codes.dtype} {list(self.codes.shape)}")
        if self.codebook and self.codebook not in CODE_BOOKS and self.codebook not in NUMBERS:
            raise WeightError("codebook", f"'' or one of {', '.join((*CODE_BOOKS, *NUMBERS))}", repr(self.codebook))
        if not 2 <= self.bits <= 8:
            raise WeightError("bits", "2 to 8", str(self.bits))
        if not 1 <= self.group <= max(self.k, 1):
            raise WeightError("group", f"1 to K={self.k}", str(self.group))
        expected = [self.n, group_count(self.k, self.group)]
        if list(self.scales.shape) != expected or self.scales.dtype not in (*SCALE_DTYPES, *BLOCK_SCALE_DTYPES, torch.float64):
            known = "float32, bfloat16, float16, float8_e4m3fn or float8_e8m0fnu"
            raise WeightError("scales", f"{known} {expected}", f"{self.scales.dtype} {list(self.scales.shape)}")
        if not all_finite(self.scales):
            raise WeightError("scales", "finite values", "NaN or infinity")
        if self.outer is not None:
            if list(self.outer.shape) != [self.n, 1] or self.outer.dtype != torch.float32:
                raise WeightError("outer", f"float32 {[self.n, 1]}", f"{self.outer.dtype} {list(self.outer.shape)}")
            if not all_finite(self.outer):
                raise WeightError("outer", "finite values", "NaN or infinity")
        if self.zeros is not None and (list(self.zeros.shape) != expected or self.zeros.dtype != torch.int8):
            raise WeightError("zeros", f"int8 {expected}", f"{self.zeros.dtype} {list(self.zeros.shape)}")
        if self.perm is not None and not torch.equal(
            self.perm.long().sort().values, torch.arange(self.k, dtype=torch.int64, device=self.perm.device)
        ):
            raise WeightError("perm", f"a permutation of 0 .. {self.k - 1}", "repeated or missing indices")
        self._check_ranges()

    def _check_ranges(self) -> None:
        if self.codebook in NUMBERS:
            if self.bits != 8 or self.zeros is not None:
                raise WeightError(
                    "codebook", "8 bits without zero points", f"{self.bits} bits" + (" with zeros" if self.bits == 8 else "")
                )
            if not all_finite(self.codes.view(NUMBERS[self.codebook])):
                raise WeightError("codes", f"finite numbers in {self.codebook.upper()}", "NaN or infinity")
        if self.codes.numel() == 0 or self.bits == 8:
            return
        low, high = (int(v) for v in torch.aminmax(self.codes))
        signed = low < 0 or (self.zeros is None and not self.codebook)
        least, most = (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1) if signed else (0, (1 << self.bits) - 1)
        if low < least or high > most:
            raise WeightError("codes", f"{least} .. {most} ({self.bits} bits)", f"{low} .. {high}")
        if self.zeros is not None:
            zlow, zhigh = (int(v) for v in torch.aminmax(self.zeros))
            if zlow < least or zhigh > most + 1:
                raise WeightError("zeros", f"{least} .. {most + 1} ({self.bits} bits)", f"{zlow} .. {zhigh}")

    def normalized(self) -> "QuantizedWeight":
        """The same weight with unsigned codes if it has zero points and fewer than 8 bits; otherwise itself."""
        if self.zeros is None or self.bits == 8 or self.codes.numel() == 0:
            return self
        if int(self.codes.min()) >= 0 and int(self.zeros.min()) >= 0:
            return self
        offset = 1 << (self.bits - 1)
        return replace(self, codes=self.codes + offset, zeros=self.zeros + offset)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W as a dense [N, K] tensor in the layer's own column order (act-order undone)."""
        stored = dequantize(self.codes, self.scales, self.zeros, self.group, self.codebook, dtype, self.outer)
        if self.perm is None:
            return stored
        dense = torch.empty_like(stored)
        dense[:, self.perm.long()] = stored
        return dense


@dataclass(frozen=True, slots=True)
class ActivationQuant:
    """How the layer's input x [..., K] is rounded before the product.

    none     x itself.
    token    dynamic, per token, symmetric int8: s = max|x| / divisor over K, q = round(clamp(x / s, low, 127)), x' = q * s.
             compressed-tensors uses divisor 127.5 and low -128; most kernels 127 and -127 (codes can differ by one).
    token_asymmetric  dynamic, per token: s = (max(x, 0) - min(x, 0)) / 255, z = round(clamp(-128 - min(x, 0) / s, -128, 127)),
             q = round(clamp(x / s + z, -128, 127)), x' = (q - z) * s.
    tensor   static, one scale s (and zero point z or 0) for the tensor: q = round(clamp(x / s + z, -128, 127)), x' = (q - z) * s.
    A token whose scale would be 0 keeps x' = 0. round() is to nearest, ties to even.
    nvfp4, mxfp4, mxfp8, fp8_token, fp8_group, fp8_tensor  to floats of 4 and 8 bits: qcompile.float_rounding. The static scale of
             nvfp4 is the global one of the tensor, a divisor.

    arithmetic  "float32": every step in float32, as kernels compute. "input": every step rounded to the dtype of x (and of s, for
             `tensor`), which is what compressed-tensors 0.20 does, bit by bit (tests/frontends/test_activations.py). In float32 the
             two are the same. Two facts of that library are not followed: for inputs that are not 3-D its "per token" scale is one
             for the whole 2-D matrix, or one for all trailing dimensions of a 4-D tensor.
    """

    kind: str = "none"
    divisor: float = 127.5
    low: int = -128
    arithmetic: str = "float32"

    @property
    def spec(self) -> str:
        """A short text that `parse` reads back; the form in which the canonical operator carries it."""
        kind = f"{self.kind}/{self.divisor:g}/{self.low}" if self.kind == "token" else self.kind
        return kind if self.arithmetic == "float32" else f"{kind}@{self.arithmetic}"

    @staticmethod
    def parse(spec: str) -> "ActivationQuant":
        text, _, arithmetic = spec.partition("@")
        arithmetic = arithmetic or "float32"
        kind, *rest = text.split("/")
        if not rest:
            return ActivationQuant(kind=kind, arithmetic=arithmetic)
        return ActivationQuant(kind=kind, divisor=float(rest[0]), low=int(rest[1]), arithmetic=arithmetic)

    @property
    def is_none(self) -> bool:
        return self.kind == "none"

    @property
    def to_floats(self) -> bool:
        """Whether x is rounded to floats of 4 or 8 bits, not to integers."""
        return self.kind in FLOAT_KINDS

    @property
    def is_static(self) -> bool:
        """Whether a constant of the checkpoint takes part (act_scale)."""
        return self.kind == "tensor" or (self.to_floats and FLOAT_KINDS[self.kind].static)

    def apply(self, x: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
        """x rounded as the class says, returned in the dtype of x. scale, zero: only for static kinds, one element each."""
        if self.kind == "none":
            return x
        if self.is_static and scale is None:
            raise WeightError("act_scale", "a static activation scale", "None")
        if self.to_floats:
            return rounded(x.to(torch.float32) if self.arithmetic == "float32" else x, self.kind, scale).to(x.dtype)
        codes, step, offset = self.codes(x, scale, zero)
        return ((codes if offset is None else codes - offset) * step).to(x.dtype)

    def codes(self, x: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(q, s, z or None) with x' = (q - z) * s: q like x with whole numbers in -128 .. 127, s and z [..., 1] or [1].

        For the kinds that round to integers; all in the dtype the arithmetic is done in.
        """
        wide = x.to(torch.float32) if self.arithmetic == "float32" else x
        offset: Tensor | None = None
        if self.kind == "token":
            step = wide.abs().amax(-1, keepdim=True) / self.divisor
        elif self.kind == "token_asymmetric":
            least, most = wide.amin(-1, keepdim=True).clamp(max=0.0), wide.amax(-1, keepdim=True).clamp(min=0.0)
            step = (most - least) / 255.0
            offset = torch.round((-128.0 - least / torch.where(step == 0, torch.ones_like(step), step)).clamp(-128, 127))
        else:
            assert scale is not None
            step = (scale.to(torch.float32) if self.arithmetic == "float32" else scale).reshape(1)
            offset = None if zero is None else zero.to(wide.dtype).reshape(1)
        step = torch.where(step == 0, torch.ones_like(step), step)
        low = self.low if self.kind == "token" else -128
        quotient = wide / step
        return torch.round((quotient if offset is None else quotient + offset).clamp(low, 127)), step, offset


NO_ACTIVATION_QUANT = ActivationQuant()


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
