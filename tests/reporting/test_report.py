"""The report keeps one row per layer, groups equal ones, explains refusals once, and reaches JSON, rich and TORCH_TRACE."""

import io
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from qcompile.reporting.report import Report, clear, combined, record, report
from qcompile.reporting.rows import EQUAL_DB, SiteReport

WOQ = "zentorch.woq_linear"
REASONS: dict[str, tuple[str, ...]] = {
    "native.int4": ("slower here: predicted 1.20 ms against 0.80 ms",),
    "rdna3.gptq_gemm": ("no AMD GPU here", "takes float16, got bfloat16"),
}
BASE = SiteReport(
    module="", bits=4, group=128, n=64, k=256, kernel=WOQ, reasons=REASONS, bytes_before=8704, bytes_after=8704, sqnr_db=52.0
)


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    clear()
    yield
    clear()


def layers(count: int) -> list[SiteReport]:
    names = ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj")
    return [
        replace(BASE, module=f"model.layers.{index}.{name}", identity=(index, name)) for index in range(count) for name in names
    ]


def test_empty_report_says_so() -> None:
    assert str(report()) == "qcompile: no quantized linear was compiled yet"
    assert report().to_dict()["total"] == 0


def test_recompilation_replaces_rows() -> None:
    record(layers(2))
    record([replace(site, kernel="native.int4", graph=1) for site in layers(2)])
    sites = report().sites
    assert len(sites) == 6
    assert {site.kernel for site in sites} == {"native.int4"}
    assert {site.graph for site in sites} == {1}


def test_same_path_in_two_models_gives_two_rows() -> None:
    record([replace(BASE, module="fc")], key="one")
    record([replace(BASE, module="fc")], key="two")
    record([replace(BASE, module="fc")], key="two")
    assert len(report().sites) == 2


def test_layer_called_twice_in_one_graph_has_two_rows() -> None:
    for _ in range(2):
        record([replace(BASE, module="shared"), replace(BASE, module="shared")])
    assert len(report().sites) == 2


def test_record_from_many_threads_loses_nothing() -> None:
    def work(index: int) -> None:
        for number in range(50):
            record([replace(BASE, module=f"m{index}.{number}")])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(report().sites) == 400


def test_plain_text_groups_layers_and_explains_once() -> None:
    lm_head = SiteReport(
        module="lm_head",
        bits=4,
        group=16,
        n=320,
        k=64,
        reasons={WOQ: ("takes a group of 32, 64 or 128, got 16",), "reference": ("off",)},
    )
    record([*layers(3), lm_head])
    assert str(report()) == (
        "qcompile: 9 of 10 quantized linears rewritten\n"
        "  model.layers.0-2.self_attn.q_proj    3 x  int4 g128  64x256  zentorch.woq_linear  52 dB\n"
        "  model.layers.0-2.mlp.{gate,up}_proj  6 x  int4 g128  64x256  zentorch.woq_linear  52 dB\n"
        "  lm_head                                   int4 g16   320x64  left as it was\n"
        "      zentorch.woq_linear  takes a group of 32, 64 or 128, got 16\n"
        "      reference            off\n"
        "\n"
        "kernels not taken\n"
        "  native.int4      slower here: predicted 1.20 ms against 0.80 ms\n"
        "  rdna3.gptq_gemm  no AMD GPU here\n"
        "                   takes float16, got bfloat16\n"
        "\n"
        "weights 78.3 kB before, 78.3 kB after; dense bfloat16 would be 336 kB; kernels against their reference: 52 dB or better"
    )


def test_rows_with_the_same_reasons_get_them_once() -> None:
    sites = [replace(BASE, module=f"layers.0.{name}", kernel=None, n=n) for name, n in (("a", 8), ("b", 16))]
    text = Report(tuple(sites)).text()
    assert text.count("no AMD GPU here") == 1
    assert text.index("layers.0.b") < text.index("no AMD GPU here")


def test_verbose_has_one_row_per_layer() -> None:
    record(layers(3))
    text = report().text(verbose=True)
    assert all(site.module in text for site in report().sites)


def test_sentences_that_differ_in_numbers_are_joined_to_ranges() -> None:
    sites = [
        replace(
            BASE,
            module=f"layers.{index}.fc",
            n=64 * (index + 1),
            reasons={"a": (f"slower here: predicted {time} ms against 0.8 ms",)},
        )
        for index, time in enumerate((1.2, 0.9, 3.4))
    ]
    assert "a  slower here: predicted 0.9-3.4 ms against 0.8 ms" in Report(tuple(sites)).text()


def test_reason_of_some_layers_shows_how_many() -> None:
    other = replace(BASE, module="head", reasons={"rdna3.gptq_gemm": ("no AMD GPU here",)})
    assert "takes float16, got bfloat16  (3 of 4)" in Report((*layers(1), other)).text()


def test_declined_site_shows_its_reason() -> None:
    text = Report((SiteReport(module="fc", declined="a scale along K stands after the product"),)).text()
    assert (
        text
        == "qcompile: 0 of 1 quantized linear rewritten\n  fc  ?  left as it was\n      a scale along K stands after the product"
    )


def test_dense_fallback_is_named() -> None:
    assert "64x256  dense" in Report((replace(BASE, module="fc", kernel=None, fallback="dense"),)).text()


@pytest.mark.parametrize(
    ("changes", "scheme"),
    [
        ({"symmetric": False, "group": 32}, "int4 g32 asym"),
        ({"bits": 8, "group": 256, "activation": "token/127.5/-128@input"}, "int8 channel, a8 token"),
        ({"codebook": "e2m1", "group": 16}, "book4 e2m1 g16"),
        ({"codebook": "e4m3", "bits": 8, "group": 128, "rows": 128}, "fp8 128x128"),
        ({"codebook": "e4m3", "bits": 8, "group": 256, "rows": 64}, "fp8 tensor"),
        ({"codebook": "e5m2", "bits": 8, "group": 256}, "fp8 e5m2 channel"),
        ({"act_order": True}, "int4 g128 act-order"),
        ({"bits": 0}, "?"),
    ],
)
def test_scheme(changes: dict[str, object], scheme: str) -> None:
    assert replace(BASE, **changes).scheme == scheme  # type: ignore[arg-type]


def test_json_is_strict_and_complete() -> None:
    record([replace(BASE, module="a", sqnr_db=math.inf), replace(BASE, module="b", sqnr_db=math.nan, kernel=None)])

    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    data = json.loads(report().to_json(), parse_constant=refuse)
    assert (data["rewritten"], data["total"], data["bytes_after"]) == (1, 2, 17408)
    first, second = data["sites"]
    assert first["sqnr_db"] == EQUAL_DB
    assert second["sqnr_db"] is None
    assert first["reasons"]["rdna3.gptq_gemm"] == ["no AMD GPU here", "takes float16, got bfloat16"]
    for name in (
        "module",
        "format",
        "bits",
        "group",
        "symmetric",
        "act_order",
        "n",
        "k",
        "kernel",
        "recognized_by",
        "bytes_before",
    ):
        assert name in first
    assert "identity" not in first


def test_worst_sqnr_is_reported_and_nan_is_worst() -> None:
    sites = (replace(BASE, sqnr_db=41.0), replace(BASE, sqnr_db=math.inf), replace(BASE, sqnr_db=None))
    assert Report(sites).sqnr_db == 41.0
    assert math.isnan(Report((*sites, replace(BASE, sqnr_db=math.nan))).sqnr_db or 0.0)
    assert len(combined([Report(sites), Report(sites)]).sites) == 6


@pytest.mark.parametrize("width", [80, 160])
def test_rich_table_shows_kernels_and_reasons(width: int) -> None:
    odd = SiteReport(module="net[0].odd", declined="the weight is changed [in place]")
    record([*layers(2), odd])
    stream = io.StringIO()
    report().print(Console(file=stream, width=width))
    output = stream.getvalue()
    assert WOQ in output
    assert "net[0].odd: not recognized" in output
    assert "the weight is changed [in place]" in output
    assert "no AMD GPU here" in output
    assert max(len(line) for line in output.splitlines()) <= width


TRACE = """
from qcompile.reporting.rows import SiteReport
from qcompile.reporting.report import record, report
from qcompile.torch_internals.trace import emit
record([SiteReport(module="model.fc", kernel="zentorch.woq_linear", bits=4, group=32, n=8, k=32)])
emit(report().to_json)
"""


@pytest.mark.slow
def test_report_is_a_structured_artifact_under_torch_trace(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", TRACE], check=True, env=os.environ | {"TORCH_TRACE": str(tmp_path)})
    (log,) = tmp_path.glob("*.log")
    lines = log.read_text().splitlines()
    (at,) = [number for number, line in enumerate(lines) if '"name": "qcompile_report"' in line]
    assert '"artifact"' in lines[at]
    payload: list[str] = []
    for line in lines[at + 1 :]:
        if not line.startswith("\t"):
            break
        payload.append(line.removeprefix("\t"))
    data = json.loads("\n".join(payload))
    assert data["sites"][0]["kernel"] == "zentorch.woq_linear"
    assert data["summary"] == "qcompile: 1 of 1 quantized linear rewritten"


LOGS = """
import torch, logging, sys
assert "qcompile" in sys.modules, "torch imports the package to find its modules"
logging.getLogger("qcompile.passes.choose").debug("a decision about %s", "fc")
logging.getLogger("qcompile").info("a summary")
"""


@pytest.mark.slow
def test_torch_logs_takes_qcompile_as_a_name() -> None:
    """torch imports `qcompile` while torch itself is still being imported, so the package must be importable at that moment."""
    done = subprocess.run(
        [sys.executable, "-c", LOGS], check=True, capture_output=True, text=True, env=os.environ | {"TORCH_LOGS": "+qcompile"}
    )
    assert "a decision about fc" in done.stderr
    assert "a summary" in done.stderr


@pytest.mark.slow
def test_without_torch_logs_nothing_is_printed() -> None:
    code = "import torch, logging\n" + LOGS.splitlines()[-2] + "\n" + LOGS.splitlines()[-1]
    env = {name: value for name, value in os.environ.items() if name != "TORCH_LOGS"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    assert done.stderr == ""
