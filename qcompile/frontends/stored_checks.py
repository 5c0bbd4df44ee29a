"""Compares one layer's tensors with what its scheme says, before anything is changed; on the meta device without their values."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.errors import WeightError

# What scales are stored as.
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def enum_text(value: object) -> str:
    """The text of a config's value, which libraries keep as a string or as a member of an enum."""
    return str(getattr(value, "value", value))


def described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def need_tensor(name: str, found: Tensor | None, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> None:
    """WeightError unless the tensor is there, with one of the dtypes and that shape."""
    kind = "a float16, bfloat16 or float32 tensor" if dtypes == FLOATS else f"a {' or '.join(map(str, dtypes))} tensor"
    if found is None:
        raise WeightError(name, f"{kind} {list(shape)}", "nothing")
    if tuple(found.shape) != shape or found.dtype not in dtypes:
        raise WeightError(name, f"{kind} {list(shape)}", described(found))


def need_finite(name: str, found: Tensor, positive: bool = False) -> None:
    """WeightError if a value is NaN or infinite, or with `positive` not above zero."""
    if found.is_meta:
        return
    wide = found.detach().to(torch.float32)
    bad = ~wide.isfinite() | ((wide <= 0) if positive else torch.zeros_like(wide, dtype=torch.bool))
    if bool(bad.any()):
        example = float(wide[bad].flatten()[0])
        kind = "finite values above 0" if positive else "finite values"
        raise WeightError(name, kind, f"{int(bad.sum())} of {wide.numel()} that are not, such as {example}")


def need_groups(name: str, g_idx: Tensor, k: int, group: int) -> None:
    """WeightError unless g_idx [k] gives every group of `group` columns its columns."""
    if tuple(g_idx.shape) != (k,) or g_idx.dtype not in (torch.int32, torch.int64):
        raise WeightError(name, f"a torch.int32 tensor [{k}]", described(g_idx))
    if g_idx.is_meta:
        return
    groups, wide = k // group, g_idx.detach().long()
    least, most = int(wide.min()), int(wide.max())
    if least < 0 or most >= groups:
        raise WeightError(name, f"[{k}] with values 0 .. {groups - 1}", f"[{k}], {least} .. {most}")
    if not bool((torch.bincount(wide, minlength=groups) == group).all()):
        raise WeightError(name, f"{group} columns in every group", "groups of different sizes")


@dataclass(frozen=True)
class Checks:
    """The tensors of a compressed-tensors layer [n, k]; every method raises WeightError, which names the tensor."""

    path: str
    n: int
    k: int
    tensors: Mapping[str, Tensor | None]

    def tensor(self, name: str, dtype: torch.dtype | None, shape: tuple[int, ...]) -> None:
        """It is there with this shape and dtype (None: the dtype of a scale)."""
        need_tensor(f"{self.path}.{name}", self.tensors.get(name), FLOATS if dtype is None else (dtype,), shape)

    def finite(self, name: str, positive: bool = False) -> None:
        found = self.tensors[name]
        if found is not None:
            need_finite(f"{self.path}.{name}", found, positive)

    def numbers(self, name: str) -> None:
        """Numbers in E4M3 that are none: NaN."""
        found = self.tensors[name]
        if found is None or found.is_meta:
            return
        wrong = sum(int(((part.view(torch.uint8) & 0x7F) == 0x7F).sum()) for part in found.detach().split(1024))
        if wrong:
            raise WeightError(f"{self.path}.{name}", "finite numbers", f"{wrong} of {found.numel()} that are NaN")

    def exponents(self, name: str) -> None:
        """The bytes of E8M0 numbers, of which 255 is NaN."""
        found = self.tensors[name]
        if found is not None and not found.is_meta and bool((found == 255).any()):
            raise WeightError(f"{self.path}.{name}", "exponents of 0 to 254 (E8M0)", "255, which is NaN")

    def divides(self, group: int) -> None:
        if group <= 0 or self.k % group:
            raise WeightError(f"{self.path}: group size", f"a divisor of K={self.k}", str(group))

    def same_shape(self) -> None:
        """weight_shape, where there is one, says [n, k]."""
        found = self.tensors.get("weight_shape")
        if found is None:
            return
        name = f"{self.path}.weight_shape"
        if tuple(found.shape) != (2,) or found.dtype not in (torch.int32, torch.int64):
            raise WeightError(name, "a torch.int64 tensor [2]", described(found))
        if not found.is_meta and found.tolist() != [self.n, self.k]:
            raise WeightError(name, str([self.n, self.k]), str(found.tolist()))

    def codes(self, name: str, bits: int) -> None:
        """All values are signed codes of so many bits."""
        found = self.tensors[name]
        if found is None or found.is_meta or bits == 8:
            return
        least, most = (int(value) for value in torch.aminmax(found.detach()))
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        if least < low or most > high:
            raise WeightError(f"{self.path}.{name}", f"codes {low} .. {high} of {bits} bits", f"{least} .. {most}")

    def unordered(self, group: int) -> tuple[str, ...]:
        """The name of weight_g_idx if it says nothing (-1 everywhere), so that it can be dropped."""
        found, name = self.tensors.get("weight_g_idx"), "weight_g_idx"
        if found is None:
            return ()
        if not found.is_meta and found.numel() and bool((found == -1).all()):
            return (name,)
        need_groups(f"{self.path}.{name}", found, self.k, group)
        return ()

    def all_zero(self, name: str) -> bool:
        """Whether the zero points of a symmetric layer are there, and say nothing; if they say something, they contradict it."""
        found = self.tensors.get(name)
        if found is None:
            return False
        if not found.is_meta and bool((found != 0).any()):
            raise WeightError(f"{self.path}.{name}", "zeros, because the scheme is symmetric", "other zero points")
        return True
