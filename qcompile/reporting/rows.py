"""A row of the report: what was decided about one quantized linear, or about something else that was looked at."""

import math
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from qcompile.kernel import OTHER_KERNELS

# JSON has no infinity. 320 dB is where float64 stops telling two results apart, so it stands for "equal".
EQUAL_DB = 320.0
# What is no code book in the words of the report.
FLOAT_KINDS = {"e4m3": "fp8", "e5m2": "fp8 e5m2"}
# The kinds of activations.ActivationQuant in the words of the report.
ACTIVATION_WORDS = {"": "", "none": "", "token": "a8 token", "token_asymmetric": "a8 asym token", "tensor": "a8 static"} | {
    "nvfp4": "a4 nvfp4", "mxfp4": "a4 mxfp4", "mxfp8": "a8 mxfp8", "fp8_token": "a8 fp8 token", "fp8_group": "a8 fp8 g128",
    "fp8_tensor": "a8 fp8 static",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """What was decided about one quantized linear y = act(x) @ W.T, W [n, k].

    module         path of the layer in the model ("model.layers.0.mlp.up_proj")
    format         the storage format's name; bits, group, symmetric, act_order, codebook: as in meaning.QuantizedWeight
    rows           outputs that share their scales, n for a scale of the whole tensor
    offset         each group has a real offset; two_level: its scales or offsets are integers times an outer scale
    activation     how the layer's input is rounded before the product, "" for not at all
    kernel         the kernel that runs it, None if it is unserved
    reasons        kernel name -> sentences, for every kernel that was not taken (also the ones that are only slower)
    recognized_by  the reader's name, or "lattice"; "" if the site was not recognized
    fallback       what an unserved site became: "dense" (dequantized once) or "packed" (left as it was)
    declined       why the site was not recognized at all, "" otherwise
    note           one more sentence for the reader of the report ("one call with k_proj and v_proj"), or ""
    bytes_before   bytes of the constants that the layer read before; bytes_after: that it reads now
    sqnr_db        the kernel against the canonical operation on a probe, None if not measured, inf if equal
    predicted_ms   kernel name -> predicted milliseconds for one row of x, of those that could run
    measured_ms    kernel name -> rows of x ("1", "8", "128") -> milliseconds measured by option tune
    dense          a sentence if a dense weight would be quicker for many rows and memory would allow it, or ""
    graph          number of the compilation that decided it
    identity       what stays the same when this layer is compiled again (None: its path); not part of the JSON form
    """

    module: str
    format: str = ""
    bits: int = 0
    group: int = 0
    symmetric: bool = True
    act_order: bool = False
    codebook: str = ""
    rows: int = 1
    offset: bool = False
    two_level: bool = False
    n: int = 0
    k: int = 0
    activation: str = ""
    kernel: str | None = None
    reasons: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {})
    recognized_by: str = ""
    fallback: str = "packed"
    declined: str = ""
    note: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    sqnr_db: float | None = None
    predicted_ms: Mapping[str, float] = field(default_factory=lambda: {})
    measured_ms: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: {})
    dense: str = ""
    graph: int = 0
    identity: Hashable = None

    @property
    def is_linear(self) -> bool:
        """Whether it is about a quantized linear (also one that could not be read)."""
        return self.format not in OTHER_KERNELS

    @property
    def scheme(self) -> str:
        """Bits, group and zero points in one short text: "int4 g128 asym"."""
        if not self.bits:
            return "?"
        kind = f"int{self.bits}" if not self.codebook else FLOAT_KINDS.get(self.codebook) or f"book{self.bits} {self.codebook}"
        group = "channel" if self.group == self.k else f"g{self.group}"
        if self.rows > 1:
            group = "tensor" if group == "channel" and self.rows >= self.n else f"{self.rows}x{self.group}"
        there = (not self.symmetric, "asym"), (self.offset, "offset"), (self.two_level, "two-level"), (self.act_order, "act-order")
        extras = "".join(f" {word}" for has, word in there if has)
        rounded = ACTIVATION_WORDS.get(re.split("[/@]", self.activation)[0], self.activation)
        return f"{kind} {group}{extras}{', ' if rounded else ''}{rounded}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; infinite SQNR becomes EQUAL_DB, NaN becomes None."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "identity"}
        values["reasons"] = {name: list(sentences) for name, sentences in self.reasons.items()}
        values["predicted_ms"] = dict(self.predicted_ms)
        values["measured_ms"] = {name: dict(times) for name, times in self.measured_ms.items()}
        values["sqnr_db"] = json_number(self.sqnr_db)
        return values


@dataclass(frozen=True, slots=True)
class Rows:
    """Decisions about quantized linears, in the order in which they were met.

    others: rows about what is no quantized linear (format "attention" or "dense"); no count or sum includes them.
    notes: sentences about whole models and their compilation.
    """

    sites: tuple[SiteReport, ...] = ()
    others: tuple[SiteReport, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[SiteReport], notes: Iterable[str] = ()) -> Self:
        """These rows, each where it belongs."""
        given = tuple(rows)
        others = tuple(row for row in given if not row.is_linear)
        return cls(tuple(row for row in given if row.is_linear), others, tuple(dict.fromkeys(notes)))

    @property
    def served(self) -> tuple[SiteReport, ...]:
        return tuple(site for site in self.sites if site.kernel is not None)

    @property
    def unserved(self) -> tuple[SiteReport, ...]:
        return tuple(site for site in self.sites if site.kernel is None)

    @property
    def summary(self) -> str:
        """One line: how many quantized linears were rewritten."""
        if not self.sites:
            return "qcompile: no quantized linear was compiled yet"
        of = len(self.sites)
        return f"qcompile: {len(self.served)} of {of} quantized linear{'s' if of != 1 else ''} rewritten"

    @property
    def bytes_before(self) -> int:
        return sum(site.bytes_before for site in self.sites)

    @property
    def bytes_after(self) -> int:
        return sum(site.bytes_after for site in self.sites)

    @property
    def sqnr_db(self) -> float | None:
        """The worst measured SQNR of all sites, NaN if one is NaN, None if none was measured."""
        values = [site.sqnr_db for site in self.sites if site.sqnr_db is not None]
        if any(math.isnan(value) for value in values):
            return math.nan
        return min(values, default=None)


def json_number(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    return max(-EQUAL_DB, min(EQUAL_DB, value))


def runs_without(site: SiteReport) -> str:
    """What became of a site without a kernel."""
    return "dense" if site.fallback == "dense" else "left as it was"
