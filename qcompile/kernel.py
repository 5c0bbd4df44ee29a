"""What a kernel row is, what a site asks of it, and a kernel as a call in a graph."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qcompile.activations import NO_ACTIVATION_QUANT, ActivationQuant
from qcompile.codebooks import NUMBERS
from qcompile.errors import WeightError
from qcompile.hardware import Platform
from qcompile.meaning import INNER_DTYPES, Operands, QuantizedWeight, group_count

Reasons = tuple[str, ...]  # empty means yes
# What else than quantized linears has a kernel of ours: the pass that finds it, also the format of its rows -> the kernel.
OTHER_KERNELS = {"attention": "native.attention", "dense": "native.dense"}


def unmet(*needs: tuple[bool, str]) -> Reasons:
    """The sentences of all needs that are not met; an empty tuple means there is nothing to object to."""
    return tuple(sentence for met, sentence in needs if not met)


class Extras(NamedTuple):
    """What a call takes besides x and the packed weight: None where the linear has none. The pipeline carries them.

    perm       int64 [K]: the weight's column i belongs to column perm[i] of x (act-order)
    bias       float [N]
    act_scale  float [1], the scale of a static activation; act_zero: its zero point
    """

    perm: Tensor | None = None
    bias: Tensor | None = None
    act_scale: Tensor | None = None
    act_zero: Tensor | None = None

    def rows(self, x: Tensor, k: int) -> Tensor:
        """x as contiguous [M, K], its columns in the order in which the weight stores them."""
        flat = x.reshape(-1, k)
        return flat.contiguous() if self.perm is None else flat.index_select(-1, self.perm)

    def plus_bias(self, y: Tensor) -> Tensor:
        """y with the bias, in the dtype of y."""
        return y if self.bias is None else y + self.bias.to(y.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One quantized linear as the eligibility rules see it: y = act(x) @ W.T + bias, x [..., K] of `dtype`.

    symmetric: no zero points. zero_range: least and largest zero point (unsigned convention), (0, 0) if symmetric.
    act_zero: a static activation has a zero point.
    rows: outputs that share their scales, in blocks from the first on; N for a scale of the whole tensor.
    allow_a8: the user permits quantizing activations although the checkpoint does not ask for it.
    outer, offset, outer_offset: it has such operands; outer_group as in meaning.QuantizedWeight. inner_bits: of scales and offsets
    that are integers, the bits that hold them: 4, 6 or 8 (0: none are).
    """

    n: int
    k: int
    bits: int
    group: int
    symmetric: bool = True
    act_order: bool = False
    codebook: str = ""
    dtype: torch.dtype = torch.bfloat16
    scale_dtype: torch.dtype = torch.float32
    has_bias: bool = False
    activation: ActivationQuant = NO_ACTIVATION_QUANT
    zero_range: tuple[int, int] = (0, 0)
    device: str = "cpu"
    allow_a8: bool = False
    act_zero: bool = False
    outer: bool = False
    rows: int = 1
    outer_group: int = 0
    offset: bool = False
    offset_dtype: torch.dtype = torch.float32
    outer_offset: bool = False
    inner_bits: int = 0

    @property
    def groups(self) -> int:
        return group_count(self.k, self.group)

    @property
    def extras(self) -> tuple[str, ...]:
        """The names of the extras that it has, in the order of `Extras`."""
        there = (self.act_order, self.has_bias, self.activation.is_static, self.act_zero)
        return tuple(name for name, has in zip(Extras._fields, there, strict=True) if has)


Need = tuple[bool, str]  # whether a site meets it, and the sentence if not; for `unmet`


def on_cpu(site: Site) -> Need:
    return site.device == "cpu", f"runs on the CPU, this linear is on {site.device}"


def integer_codes(site: Site) -> Need:
    found = f"are numbers in {site.codebook.upper()}" if site.codebook in NUMBERS else f"index the code book {site.codebook!r}"
    return not site.codebook, f"takes integer codes, these {found}"


def most_bits(site: Site, bits: int) -> Need:
    return site.bits <= bits, f"takes weights of up to {bits} bits, got {site.bits}"


def whole_groups(site: Site) -> Need:
    return site.k % site.group == 0, f"takes groups that divide K, got groups of {site.group} with K={site.k}"


def no_offsets(site: Site) -> Need:
    return not site.offset, "takes integer zero points or none, each group of these weights has a real offset"


def one_level(site: Site) -> Need:
    return not site.outer, "takes scales of one level, these weights have an outer scale as well"


def weight_only(site: Site) -> Need:
    return site.activation.is_none, f"does not quantize activations, this linear wants {site.activation.spec}"


def floats_or_none(site: Site) -> Need:
    """For kernels of unrounded activations that have ours rounded to floats first."""
    needed = site.activation.is_none or site.activation.to_floats
    return needed, f"rounds activations to floats of 4 or 8 bits or not at all, this linear wants {site.activation.spec}"


def integers_or_none(site: Site) -> Need:
    return not site.activation.to_floats, f"rounds activations to integers, this linear wants {site.activation.spec}"


def rounding_permitted(site: Site) -> Need:
    sentence = "quantizes activations to int8, which the checkpoint does not ask for (the option allow_a8 permits it)"
    return not site.activation.is_none or site.allow_a8, sentence


def scales_fit_float16(site: Site) -> Need:
    """For kernels that keep scales in the dtype of x."""
    narrow = site.dtype == torch.float16 and site.scale_dtype != torch.float16
    return not narrow, f"keeps scales as float16 for float16 activations, which does not hold every {site.scale_dtype} scale"


@dataclass(frozen=True, slots=True)
class FewRows:
    """Another kernel that reads the same packed tensors and that this one's operator can run itself where x has few rows.

    kernel  its name
    call    as Kernel.call, with one more argument: x of fewer rows than that runs in the other kernel
    """

    kernel: str
    call: Callable[[Tensor, tuple[Tensor, ...], Extras, Site, int], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One way to run a site.

    missing   what this platform lacks for it (hardware, library, operator, schema argument); empty = it runs here
    refuses   what it cannot take of a site; all reasons, empty = it takes it
    pack      codes, scales and zeros of Operands (constants) -> packed tensors; straight-line torch code without data-dependent
              control flow and without .item(), because it is traced with fx proxies into the graph and folded there
    call      (x [..., K], packed, extras, site) -> y [..., N] in x.dtype; torch code that traces to few operators. Leading
              dimensions may be symbolic: use reshape(-1, K), never int(x.shape[0])
    seconds   predicted time for m rows on this platform, for the order of choice
    extras    brings the extras into the form that `call` reads, when packing; as they are where it is left out
    activation  how the kernel itself rounds activations (None: exactly as the site says); verified against that
    default_activation  what pack_linear assumes for a kernel that only computes with quantized activations
    form      kernels whose form for a site is equal read the same packed tensors, so that each graph of a model may take the one
              that is quickest for its number of rows without packing twice; None if no other kernel reads them
    stored_bits  the least that a code takes when packed: kernels that keep narrower codes in more stand behind those that do not
    few       which of those its operator can run where the number of rows is known in the call only
    retire_addresses  packed tensors must live at addresses that are never used again (a library that caches by address)
    layout    a text with all that the packed bytes depend on besides the operands, our own code and torch's version (the version of
              another library, the processor); None if they mean nothing to another process. Asked for by option cache_dir
    """

    name: str
    missing: Callable[[Platform], Reasons]
    refuses: Callable[[Site], Reasons]
    pack: Callable[[Operands, Site], tuple[Tensor, ...]]
    call: Callable[[Tensor, tuple[Tensor, ...], Extras, Site], Tensor]
    seconds: Callable[[Site, int, Platform], float]
    extras: Callable[[Extras, Site], Extras] | None = None
    activation: ActivationQuant | None = None
    default_activation: ActivationQuant = NO_ACTIVATION_QUANT
    form: Callable[[Site], str] | None = None
    stored_bits: int = 4
    few: FewRows | None = None
    retire_addresses: bool = False
    layout: Callable[[], str] | None = None

    @property
    def target(self) -> str:
        return self.name.split(".", 1)[0]

    def reasons(self, site: Site, where: Platform) -> Reasons:
        """Everything that speaks against this kernel for this site on this platform."""
        if where.simulated:  # the model is on this machine's CPU, but would be on the simulated platform's device
            site = replace(site, device=where.device)
        return (*self.missing(where), *self.refuses(site))

    def packed(self, operands: Operands, site: Site) -> tuple[Tensor, ...]:
        """All constants of a call: the packed weight, then the extras that the site has."""
        if "act_scale" in site.extras and operands.act_scale is None:
            raise WeightError("act_scale", "a static activation scale", "None")
        extras = Extras(**{name: getattr(operands, name) for name in site.extras})
        if self.extras is not None:
            extras = self.extras(extras, site)
        return (*self.pack(operands, site), *(tensor for tensor in extras if tensor is not None))

    def run(self, x: Tensor, packed: tuple[Tensor, ...], site: Site, few_rows: int = 0) -> Tensor:
        """y for what `packed` gave. few_rows: x of fewer rows runs in the kernel that `few` names."""
        names = site.extras
        weight, rest = packed[: len(packed) - len(names)], packed[len(packed) - len(names) :]
        extras = Extras(**dict(zip(names, rest, strict=True)))
        if few_rows and self.few is not None:
            return self.few.call(x, weight, extras, site, few_rows)
        return self.call(x, weight, extras, site)

    def rounding(self, site: Site) -> ActivationQuant:
        """How this kernel rounds the activations of this site: in its own way, or as asked; if not asked, as it must."""
        if self.activation is not None:
            return self.activation
        return self.default_activation if site.activation.is_none else site.activation


def site_of(
    weight: QuantizedWeight, dtype: torch.dtype, bias: Tensor | None, activation: ActivationQuant, act_zero: Tensor | None = None
) -> Site:
    """The Site that describes `weight` in a linear with activations of `dtype`."""
    zeros = weight.zeros
    return Site(
        n=weight.n,
        k=weight.k,
        bits=weight.bits,
        group=weight.group,
        symmetric=zeros is None,
        act_order=weight.perm is not None,
        codebook=weight.codebook,
        dtype=dtype,
        scale_dtype=weight.scales.dtype,
        has_bias=bias is not None,
        activation=activation,
        zero_range=(int(zeros.min()), int(zeros.max())) if zeros is not None and zeros.numel() else (0, 0),
        device=weight.codes.device.type,
        act_zero=activation.kind == "tensor" and act_zero is not None,
        outer=weight.outer is not None,
        outer_group=weight.outer_group if weight.outer_group != weight.k else 0,
        offset=weight.offsets is not None,
        offset_dtype=torch.float32 if weight.offsets is None else weight.offsets.dtype,
        outer_offset=weight.outer_offset is not None,
        inner_bits=inner_bits(weight.scales, weight.offsets),
    )


def inner_bits(*levels: Tensor | None) -> int:
    """4, 6 or 8, the bits that hold those of the tensors that are integers, signed or not as their dtype is; 0 if none are."""
    needed = max((_width(level) for level in levels if level is not None and level.dtype in INNER_DTYPES), default=0)
    return next(width for width in (0, 4, 6, 8) if needed <= width)


def _width(level: Tensor) -> int:
    if level.numel() == 0:
        return 1
    least, most = (int(item) for item in torch.aminmax(level))
    if level.dtype is torch.uint8:
        return max(most.bit_length(), 1)
    return max(most, -least - 1, 0).bit_length() + 1


class KernelCall:
    """A kernel for one kind of site as a call target: (x, *packed) -> y. `lower` replaces it by the operators it consists of.

    few_rows: x of fewer rows runs in the kernel that kernel.few names.
    """

    def __init__(self, kernel: Kernel, site: Site, few_rows: int = 0) -> None:
        self.kernel, self.site, self.few_rows = kernel, site, few_rows
        self.display_name = self.__name__ = self.__qualname__ = kernel.name

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that do the same."""
        return ("call", self.kernel.name, self.site, self.few_rows)

    @property
    def settings(self) -> dict[str, Any]:
        """What the call depends on beside its operands, without what is as usual; for the graph's text."""
        of_site = {item.name: getattr(self.site, item.name) for item in fields(self.site)}
        usual = {item.name: item.default for item in fields(self.site)}
        found = {name: item for name, item in of_site.items() if item != usual[name]}
        return found | ({"few_rows": self.few_rows} if self.few_rows else {})

    def __call__(self, x: Tensor, *packed: Tensor) -> Tensor:
        return self.kernel.run(x, packed, self.site, self.few_rows)
