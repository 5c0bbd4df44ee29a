"""Ways in which people write a dequantization and a product: each a module with its weight in buffers, and what must be read in it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
M, N, K, G = 6, 48, 64, 32  # rows, outputs, inputs, group


class Written(nn.Module):
    """A forward written down as a function of (the module's tensors, x); the tensors are buffers."""

    def __init__(self, forward: Callable[..., Tensor], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.code = forward
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


@dataclass(frozen=True, slots=True)
class Spelling:
    """forward(module, x) with its tensors; x has `shape`. The others say what must be recognized."""

    name: str
    forward: Callable[..., Tensor]
    tensors: Callable[[], dict[str, Tensor]]
    bits: int = 8
    group: int = K
    symmetric: bool = True
    act_order: bool = False
    dtype: torch.dtype = BF16
    shape: tuple[int, ...] = (M, K)
    codebook: str = ""
    offset: bool = False
    two_level: bool = False

    def model(self) -> Written:
        torch.manual_seed(5)
        return Written(self.forward, self.tensors()).eval()

    def x(self, seed: int = 0) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)).to(self.dtype)


def int8(n: int = N, k: int = K) -> Tensor:
    return torch.randint(-128, 128, (n, k), dtype=torch.int8)


def int4(n: int = N, k: int = K) -> Tensor:
    """Signed 4-bit codes, one in a byte; all sixteen occur."""
    codes = torch.randint(-8, 8, (n, k), dtype=torch.int8)
    codes[:, :16] = torch.arange(-8, 8, dtype=torch.int8)
    return codes


def uint4(n: int = N, k: int = K) -> Tensor:
    return (int4(n, k) + 8).to(torch.uint8)


def scale(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return (torch.rand(shape) * 0.01 + 0.001).to(dtype)


def nibbles(codes: Tensor) -> Tensor:
    """Unsigned 4-bit codes [N, K] -> bytes [N, K / 2], even columns low."""
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def words(codes: Tensor) -> Tensor:
    """Unsigned 4-bit codes [N, K] -> int32 [N, K / 8], low nibble first."""
    wide = codes.to(torch.int64).reshape(codes.shape[0], -1, 8)
    packed = (wide << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def w8(scales: tuple[int, ...] = (N,), dtype: torch.dtype = BF16, n: int = N, k: int = K) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"w": int8(n, k), "s": scale(*scales, dtype=dtype)}


linear = nn.functional.linear

# Per-channel int8: the eight of the table in the style guide, first.
EIGHT = (
    Spelling("linear then scale, 3-D", lambda m, x: linear(x, m.w.to(BF16)) * m.s, w8(), shape=(2, 3, K)),
    Spelling("matmul of the transposed, then scale", lambda m, x: (x @ m.w.T.to(BF16)) * m.s, w8()),
    Spelling("linear then scale, 2-D", lambda m, x: linear(x, m.w.to(BF16)) * m.s, w8()),
    Spelling("scale times linear", lambda m, x: m.s * linear(x, m.w.to(BF16)), w8()),
    Spelling("linear of the scaled", lambda m, x: linear(x, m.w.to(BF16) * m.s[:, None]), w8()),
    Spelling("matmul of the scaled, transposed", lambda m, x: x @ (m.w.to(BF16) * m.s[:, None]).T, w8()),
    Spelling("einsum then scale", lambda m, x: torch.einsum("bk,nk->bn", x, m.w.to(BF16)) * m.s, w8()),
    Spelling(
        "views between product and scale", lambda m, x: linear(x, m.w.to(BF16)).view(-1, N) * m.s.view(1, N), w8(), shape=(2, 3, K)
    ),
)


def _unpacked_by_slices(m: nn.Module, x: Tensor) -> Tensor:
    codes = torch.empty((N, K), dtype=torch.int8)
    codes[:, ::2] = (m.p & 15).to(torch.int8) - 8
    codes[:, 1::2] = (m.p >> 4).to(torch.int8) - 8
    return linear(x, (codes.to(BF16).view(N, -1, G) * m.s.unsqueeze(-1)).view(N, K))


def _unpacked_by_shifts(m: nn.Module, x: Tensor) -> Tensor:
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = ((m.p.unsqueeze(-1) >> shifts) & 15).reshape(N, K)
    return linear(x, (codes.to(BF16) - 8).view(N, -1, G).mul(m.s.unsqueeze(-1)).view(N, K))


def _unpacked_by_unbind(m: nn.Module, x: Tensor) -> Tensor:
    low, high = torch.stack((m.p & 15, m.p >> 4)).unbind(0)
    codes = torch.stack((low, high), dim=-1).flatten(1).to(BF16) - 8.0
    return linear(x, codes * m.s.repeat_interleave(G, dim=1))


def _nibbles_then_float(m: nn.Module, x: Tensor) -> Tensor:
    codes = torch.stack((m.p & 15, m.p >> 4), dim=-1).flatten(1).to(BF16) - 8.0
    return linear(x, (codes * m.s.repeat_interleave(G, dim=1)).float())


def _nibbles_scaled_after(m: nn.Module, x: Tensor) -> Tensor:
    codes = torch.stack((m.p & 15, m.p >> 4), dim=-1).flatten(1).to(BF16) - 8.0
    return (x @ codes.T) * m.s


def _looked_up(m: nn.Module, x: Tensor) -> Tensor:
    pairs = m.table[m.p.long()]  # [N, K/2, 2]
    return linear(x, pairs.flatten(1) * m.s.repeat_interleave(G, dim=1))


def _pairs_table() -> Tensor:
    byte = torch.arange(256)
    return torch.stack(((byte & 15) - 8, (byte >> 4) - 8), dim=-1).to(BF16)


def _literal_table(m: nn.Module, x: Tensor) -> Tensor:
    table = torch.tensor([-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], dtype=BF16)
    return linear(x, table[m.q.long()] * m.s[:, None])


def _group_gather(m: nn.Module, x: Tensor) -> Tensor:
    return x @ ((m.q.to(F16) - 8) * m.s[m.g_idx.long()].T).T


def _act_order() -> dict[str, Tensor]:
    g_idx = torch.arange(K, dtype=torch.int32)[torch.randperm(K)] // G
    return {"q": uint4(), "s": scale(K // G, N, dtype=F16), "g_idx": g_idx}


def _gptq(m: nn.Module, x: Tensor) -> Tensor:
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = ((m.qweight.unsqueeze(1) >> shifts[None, :, None]) & 15).reshape(K, N)
    points = ((m.qzeros.unsqueeze(2) >> shifts) & 15).reshape(K // G, N) + 1
    return x @ (m.s[m.g_idx.long()] * (codes - points[m.g_idx.long()]).to(F16))


def _gptq_tensors() -> dict[str, Tensor]:
    return {
        "qweight": words(uint4()).reshape(N, K // 8).T.contiguous(),
        "qzeros": words(torch.randint(0, 15, (K // G, N), dtype=torch.uint8)),
        "s": scale(K // G, N, dtype=F16),
        "g_idx": torch.arange(K, dtype=torch.int32) // G,
    }


def _float_zeros(m: nn.Module, x: Tensor) -> Tensor:
    return linear(x, ((m.q.to(F32).view(N, -1, G) - m.z[:, :, None]) * m.s[:, :, None]).view(N, K).to(BF16))


def _offset_zeros(m: nn.Module, x: Tensor) -> Tensor:
    codes = m.q.to(F32).view(N, -1, G)
    return linear(x, (codes * m.s[:, :, None] - (m.z * m.s)[:, :, None]).view(N, K))


def _packed_zeros(m: nn.Module, x: Tensor) -> Tensor:
    codes = torch.stack((m.p & 15, m.p >> 4), -1).view(N, K // G, G).to(torch.int8)
    points = torch.stack((m.z & 15, m.z >> 4), -1).view(N, K // G, 1).to(torch.int8)
    return linear(x, ((codes - points).to(BF16) * m.s.unsqueeze(-1)).flatten(1))


def _asymmetric(zeros: Callable[[], Tensor], scales: torch.dtype = BF16) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"q": uint4(), "s": scale(N, K // G, dtype=scales), "z": zeros()}


def _points() -> Tensor:
    return torch.randint(0, 16, (N, K // G), dtype=torch.uint8)


def _double_scale(m: nn.Module, x: Tensor) -> Tensor:
    scales = m.s8.to(F32) * m.s
    return linear(x, (m.q.to(F32).view(N, -1, G) * scales[:, :, None]).view(N, K).to(BF16))


def _grouped(q: Callable[[], Tensor] = int4, dtype: torch.dtype = BF16) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"q": q(), "s": scale(N, K // G, dtype=dtype)}


def _bias(tensors: Callable[[], dict[str, Tensor]], dtype: torch.dtype = BF16) -> Callable[[], dict[str, Tensor]]:
    return lambda: {**tensors(), "b": torch.randn(N).to(dtype)}


MORE = (
    # nibbles
    Spelling("nibbles by slices", _unpacked_by_slices, lambda: {"p": nibbles(uint4()), "s": scale(N, K // G)}, 4, G),
    Spelling("nibbles by shifts of words", _unpacked_by_shifts, lambda: {"p": words(uint4()), "s": scale(N, K // G)}, 4, G),
    Spelling("nibbles by stack and unbind", _unpacked_by_unbind, lambda: {"p": nibbles(uint4()), "s": scale(N, K // G)}, 4, G),
    Spelling(
        "nibbles by a table of pairs",
        _looked_up,
        lambda: {"p": nibbles(uint4()), "s": scale(N, K // G), "table": _pairs_table()},
        4,
        G,
    ),
    Spelling("nibbles, scale after", _nibbles_scaled_after, lambda: {"p": nibbles(uint4()), "s": scale(N)}, 4),
    Spelling("codes by a literal table", _literal_table, lambda: {"q": uint4(), "s": scale(N)}, 4),
    Spelling("four bits in int8", lambda m, x: linear(x, m.q.to(BF16) * m.s), lambda: {"q": int4(), "s": scale(N, 1)}, 4),
    # groups
    Spelling("repeat_interleave", lambda m, x: linear(x, m.q * m.s.repeat_interleave(G, 1)), _grouped(), 4, G),
    Spelling("groups of int8", lambda m, x: linear(x, (m.w.view(N, -1, G) * m.s[..., None]).flatten(1)), w8((N, K // G)), 8, G),
    Spelling("unflatten", lambda m, x: linear(x, (m.q.unflatten(1, (-1, G)) * m.s[..., None]).flatten(1)), _grouped(), 4, G),
    Spelling(
        "scales [G, N], weight [K, N]",
        lambda m, x: x @ (m.q.view(-1, G, N) * m.s[:, None]).view(K, N),
        lambda: {"q": int4(K, N), "s": scale(K // G, N)},
        4,
        G,
    ),
    # products
    Spelling("einsum, 3-D", lambda m, x: torch.einsum("bsk,nk->bsn", x, m.w.to(BF16) * m.s[:, None]), w8(), shape=(2, 3, K)),
    Spelling("einsum, weight first", lambda m, x: torch.einsum("nk,bk->bn", m.w.to(BF16) * m.s[:, None], x), w8()),
    Spelling("einsum, output transposed", lambda m, x: torch.einsum("bk,nk->nb", x, m.w.to(BF16)) * m.s[:, None], w8()),
    Spelling("weight on the left", lambda m, x: ((m.w.to(BF16) * m.s[:, None]) @ x.T).T, w8()),
    Spelling("weight on the left, scale after", lambda m, x: ((m.w.to(BF16) @ x.T) * m.s[:, None]).T, w8()),
    Spelling("vector by linear", lambda m, x: linear(x, m.w.to(BF16)) * m.s, w8(), shape=(K,)),
    Spelling("vector by mv", lambda m, x: torch.mv(m.w.to(BF16), x) * m.s, w8(), shape=(K,)),
    Spelling("vector from the left", lambda m, x: x @ (m.w.T.to(BF16) * m.s), w8(), shape=(K,)),
    Spelling("bmm with expand", lambda m, x: torch.bmm(x, (m.w.T.to(BF16) * m.s).expand(x.shape[0], K, N)), w8(), shape=(2, 3, K)),
    Spelling("matmul 3-D", lambda m, x: x @ (m.w.to(BF16) * m.s[:, None]).mT, w8(), shape=(2, 3, K)),
    Spelling("matmul 4-D", lambda m, x: (x @ m.w.T.to(BF16)) * m.s, w8(), shape=(2, 2, 3, K)),
    Spelling("weight left of 3-D", lambda m, x: (m.w.to(BF16) * m.s[:, None]) @ x.mT, w8(), shape=(2, 3, K)),
    Spelling("addmm", lambda m, x: torch.addmm(m.b, x, (m.w.to(BF16) * m.s[:, None]).T), _bias(w8())),
    Spelling(
        "addmm with alpha and beta",
        lambda m, x: torch.addmm(m.b, x, (m.w.to(BF16) * m.s[:, None]).T, alpha=0.5, beta=2),
        _bias(w8()),
    ),
    Spelling(
        "baddbmm of an activation",
        lambda m, x: torch.baddbmm(x.sum(-1, keepdim=True), x, (m.w.T.to(BF16) * m.s).expand(x.shape[0], K, N)),
        w8(),
        shape=(2, 3, K),
    ),
    Spelling("addmm of an activation", lambda m, x: torch.addmm(x.sum(-1, keepdim=True), x, (m.w * m.s[:, None]).T), w8()),
    Spelling("weight on the left of addmm", lambda m, x: torch.addmm(x.T[:N], m.w * m.s[:, None], x.T), w8()),
    Spelling("a number after", lambda m, x: linear(x, m.w.to(BF16)) * 0.01, lambda: {"w": int8(), "s": scale(N)}),
    Spelling("N == K", lambda m, x: linear(x, m.w.to(BF16)) * m.s, w8((K,), n=K)),
    Spelling("N == K, stored transposed", lambda m, x: x @ (m.w.to(BF16) * m.s), w8((K,), n=K)),
    Spelling("N == K == M", lambda m, x: linear(x, m.w.to(BF16)) * m.s, w8((K,), n=K), shape=(K, K)),
    # biases
    Spelling("bias before the scale", lambda m, x: linear(x, m.w.to(BF16), m.b) * m.s, _bias(w8())),
    Spelling("bias after the scale", lambda m, x: linear(x, m.w.to(BF16)) * m.s + m.b, _bias(w8())),
    Spelling("bias in linear", lambda m, x: linear(x, m.w.to(BF16) * m.s[:, None], m.b), _bias(w8())),
    # dtypes
    Spelling("fp32 scale of a bf16 product", lambda m, x: (linear(x, m.w.to(BF16)) * m.s).to(BF16), w8(dtype=F32)),
    Spelling("fp32 product, fp32 scale", lambda m, x: linear(x.float(), m.w.float()) * m.s, w8(dtype=F32)),
    Spelling("fp32 throughout", lambda m, x: linear(x, m.w * m.s[:, None]), w8(dtype=F32), dtype=F32),
    Spelling("fp16 throughout", lambda m, x: linear(x, m.w * m.s[:, None]), w8(dtype=F16), dtype=F16),
    Spelling("fp16, scale after", lambda m, x: linear(x, m.w.to(F16)) * m.s, w8(dtype=F16), dtype=F16),
    Spelling("bf16 weight in an fp32 product", lambda m, x: linear(x, (m.w.to(BF16) * m.s[:, None]).float()), w8(), dtype=F32),
    Spelling(
        "bf16 nibbles in an fp32 product",
        _nibbles_then_float,
        lambda: {"p": nibbles(uint4()), "s": scale(N, K // G)},
        4,
        G,
        dtype=F32,
    ),
    Spelling("divided by a scale", lambda m, x: linear(x, m.w.to(BF16)) / m.s, lambda: {"w": int8(), "s": scale(N) * 8000}),
    Spelling("two scales after", lambda m, x: linear(x, m.w.to(BF16)) * m.s * m.s2, lambda: {**w8()(), "s2": scale(1) * 100}),
    # scales of scales
    Spelling(
        "scale and second scale",
        lambda m, x: linear(x, m.w.to(F32).mul(m.s * m.s2).to(BF16)),
        lambda: {"w": int8(), "s": scale(N, 1, dtype=F32), "s2": scale(1, dtype=F32) * 50},
    ),
    Spelling(
        "int8 scales",
        _double_scale,
        lambda: {"q": int4(), "s8": torch.randint(1, 127, (N, K // G), dtype=torch.int8), "s": scale(N, 1, dtype=F32)},
        4,
        G,
        two_level=True,
    ),
    # zero points
    Spelling(
        "zero points int8",
        lambda m, x: linear(x, ((m.w.to(BF16).view(N, -1, G) - m.z[:, :, None]) * m.s[:, :, None]).view(N, K)),
        lambda: {"w": int4(), "s": scale(N, K // G), "z": torch.randint(-8, 8, (N, K // G), dtype=torch.int8)},
        4,
        G,
        False,
    ),
    Spelling(
        "zero points of 8 bits",
        lambda m, x: linear(x, ((m.w.to(F16).view(N, -1, G) - m.z[:, :, None]) * m.s[:, :, None]).view(N, K)),
        lambda: {"w": int8(), "s": scale(N, K // G, dtype=F16), "z": torch.randint(-128, 128, (N, K // G), dtype=torch.int8)},
        8,
        G,
        False,
        dtype=F16,
    ),
    Spelling(
        "zero points uint8 packed",
        _packed_zeros,
        lambda: {"p": nibbles(uint4()), "s": scale(N, K // G), "z": nibbles(_points())},
        4,
        G,
        False,
    ),
    Spelling("zero points float", _float_zeros, _asymmetric(lambda: _points().to(F32), F32), 4, G, False),
    Spelling("zeros times scales subtracted", _offset_zeros, _asymmetric(lambda: _points().to(F32), F32), 4, G, False, dtype=F32),
    Spelling("group index", _group_gather, _act_order, 4, G, act_order=True, dtype=F16),
    Spelling("GPTQ by hand", _gptq, _gptq_tensors, 4, G, False, dtype=F16),
)

SPELLINGS = (*EIGHT, *MORE)
