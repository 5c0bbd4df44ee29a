"""The operators that ship with torch: oneDNN's opaque weights live as long as their tensors; without VNNI they are refused."""

import os
import subprocess
import sys

import pytest
import torch
from support.rows import needed
from support.weights import random_weight, reference

from qcompile.activations import ActivationQuant
from qcompile.api import pack_linear
from qcompile.errors import WeightError
from qcompile.kernel import site_of
from qcompile.meaning import Operands, sqnr_db
from qcompile.targets import onednn
from qcompile.targets.torch import int4_group, missing_aten

TOKEN = ActivationQuant("token")


def test_opaque_weights_live_as_long_as_the_tensor_over_them() -> None:
    needed("torch.qlinear_int8")
    before = len(onednn._OPAQUE)
    packed = onednn.pack(torch.ones(48, 64, dtype=torch.int8))
    assert (packed.dtype, packed.shape, len(onednn._OPAQUE)) == (torch.int8, (48, 64), before + 1)
    view = packed.detach()
    del packed
    q = torch.full((2, 64), 130, dtype=torch.uint8)
    assert torch.equal(onednn.linear(q, view, torch.ones(48)), torch.full((2, 48), 128.0))
    del view
    assert len(onednn._OPAQUE) == before


def test_a_copy_of_an_opaque_weight_is_an_error() -> None:
    needed("torch.qlinear_int8")
    packed = onednn.pack(torch.ones(48, 64, dtype=torch.int8))
    q = torch.zeros(2, 64, dtype=torch.uint8)
    with pytest.raises(WeightError, match="as qcompile::onednn_pack made it"):
        onednn.linear(q, packed.clone(), torch.ones(48))


def test_many_weights_one_after_the_other() -> None:
    needed("torch.qlinear_int8")
    x = torch.randn(4, 256)
    for seed in range(20):
        weight = random_weight(96, 256, bits=8, seed=seed)
        run = pack_linear(weight, "torch.qlinear_int8", dtype=torch.float32)
        assert sqnr_db(reference(x, weight, None, TOKEN), run(x)) > 100


def test_oneDNN_without_VNNI_is_noticed_by_value() -> None:  # noqa: N802 - their spelling
    """oneDNN held down to AVX2 saturates sums of two products to 16 bits; the row must then refuse to run."""
    needed("torch.qlinear_int8")
    code = "from qcompile.targets import onednn; print(onednn.objections())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "saturates on this processor" in run.stdout


@pytest.mark.parametrize(("group", "served"), [(32, 32), (128, 128), (256, 256), (512, 256), (96, 32), (384, 128), (48, 0)])
def test_large_groups_are_written_as_several(group: int, served: int) -> None:
    assert int4_group(group) == served


def test_an_operator_that_torch_lacks_or_changed_is_a_reason() -> None:
    assert missing_aten(("_no_such_operator", ())) == ("this torch has no operator aten::_no_such_operator",)
    assert "no argument scales_of_mine" in missing_aten(("_weight_int8pack_mm", ("self", "mat2", "scales", "scales_of_mine")))[0]


def test_not_finite_activations_stay_not_finite() -> None:
    needed("torch.qlinear_int8")
    weight = random_weight(32, 128, bits=8)
    x = torch.randn(3, 128)
    x[1, 5] = float("nan")
    y = pack_linear(weight, "torch.qlinear_int8", dtype=torch.float32)(x)
    assert bool(torch.isfinite(y[0]).all()) and bool(torch.isnan(y[1]).all()) and bool(torch.isfinite(y[2]).all())


def test_zero_offsets_are_exact_for_a_symmetric_weight() -> None:
    row, weight = needed("torch.int4pack"), random_weight(16, 64, 32)
    site = site_of(weight, torch.bfloat16, None, ActivationQuant())
    assert not bool(row.packed(Operands(weight.codes, weight.scales), site)[1][..., 1].any())
