"""Afterwards attention is a call of our own kernel where that is faster and proven equal; all other is as it was."""

import logging
from dataclasses import replace

from torch import Tensor, fx

from qcompile.graph.nodes import value
from qcompile.hardware import Platform, platform
from qcompile.kernel import Reasons, unmet
from qcompile.meaning import Verdict
from qcompile.pipeline import Pass, State
from qcompile.recognize.attention import Attention, find_attention, same_size
from qcompile.recognize.attention_proof import call, disproof, key_of, outer_inputs
from qcompile.reporting.rows import SiteReport
from qcompile.targets import native_attention
from qcompile.targets.native_attention import DTYPES, NAME, most_queries
from qcompile.targets.registry import against_options
from qcompile.torch_internals import inputs

log = logging.getLogger(__name__)


def apply(state: State) -> None:
    """Look at every attention; rewrite it, or note why not."""
    proven: dict[str, Verdict] = {}
    for node in list(state.graph.nodes):
        try:
            _look(state, node, proven)
        except Exception as error:  # an odd graph must never stop the user's model
            log.debug("attention at %s could not be read", node.name, exc_info=True)
            state.note(_row(node), (f"could not be read: {type(error).__name__}: {error}",))


def _look(state: State, node: fx.Node, proven: dict[str, Verdict]) -> None:
    found = find_attention(node)
    if found is None:
        return
    row = _row(node)
    if isinstance(found, str):
        state.note(row, (found,))
        return
    reasons = (
        *against_options(NAME, state.options),
        *native_attention.missing(state.platform),
        *_refusals(found[0], state.platform),
    )
    if reasons:
        state.note(row, reasons)
        return
    chosen, wrong, sqnr = _proven(state, found, proven)
    if chosen is None:
        state.note(row, (wrong,))
    elif not state.burn():
        state.note(row, ("the rewrite budget (option fuel) is used up",))
    elif _rewrite(state, chosen):
        state.note(replace(row, note=_sizes(chosen)), (), sqnr)
    else:
        state.note(row, ("its result lies in memory in an order that the rest of the graph does not expect",))


def _row(node: fx.Node) -> SiteReport:
    return SiteReport(module=inputs.module_path(node), format="attention")


def _refusals(found: Attention, where: Platform) -> Reasons:
    q, k, v = value(found.q), value(found.k), value(found.v)
    rows, most = q.shape[2], most_queries(where)
    return unmet(
        (q.device.type == "cpu", f"runs on the CPU, this attention is on {q.device.type}"),
        (q.dtype in DTYPES, f"takes bfloat16, float16 or float32, got {str(q.dtype).removeprefix('torch.')}"),
        (k.dtype is q.dtype and v.dtype is q.dtype, "takes one dtype for queries, keys and values"),
        (same_size(v.shape[3], k.shape[3]), f"takes keys and values of one width, got {k.shape[3]} and {v.shape[3]}"),
        # A length that is only known at run time is decided then, inside the operator.
        (not isinstance(rows, int) or rows <= most, f"takes up to {most} query rows, this graph has {rows}"),
    )


def _proven(state: State, found: list[Attention], proven: dict[str, Verdict]) -> tuple[Attention | None, str, float | None]:
    """The first proposal that holds with the least SQNR of our kernel, or what is wrong with the first one."""
    first = ""
    runs_here = not state.platform.simulated or not native_attention.missing(platform())
    for proposal in found:
        sizes = outer_inputs(proposal)
        if isinstance(sizes, str):
            first = first or sizes
            continue
        key = key_of(proposal, sizes)
        if key not in proven or state.options.verify == "every":
            proven[key] = disproof(proposal, sizes, kernel=runs_here and state.options.verify != "off")
        wrong, sqnr = proven[key]
        if not wrong:
            return proposal, "", sqnr
        first = first or wrong
    return None, first, None


def _rewrite(state: State, found: Attention) -> bool:
    """Put our operator in the place of the result; False if the result would lie in memory as its users do not expect."""
    graph, old = state.graph, value(found.out)
    key = (NAME, found.scale, found.causal, found.nan_if_unseen)
    before = set(graph.nodes)
    with graph.inserting_before(found.out.next):
        node = state.emit(graph, lambda q, k, v, mask: call(q, k, v, mask, found), [found.q, found.k, found.v, found.mask], key)
        if not _laid_out_alike(value(node), old):
            if not _laid_out_alike(value(node).contiguous(), old):
                for added in reversed([item for item in graph.nodes if item not in before]):
                    graph.erase_node(added)
                return False
            node = state.emit(graph, lambda tensor: tensor.contiguous(), [node], "contiguous")
    node.meta = {**found.out.meta, "val": value(node)}
    found.out.replace_all_uses_with(node)
    return True


def _laid_out_alike(a: Tensor, b: Tensor) -> bool:
    """Whether the strides are equal where they matter."""
    sizes = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(same_size(size, 1) or same_size(left, right) for size, left, right in sizes)


def _sizes(found: Attention) -> str:
    q, k = value(found.q), value(found.k)
    rows = q.shape[2] if isinstance(q.shape[2], int) else "any number of"
    shared = f" sharing {k.shape[1]} of keys and values" if q.shape[1] != k.shape[1] else ""
    return f"{rows} query row{'' if rows == 1 else 's'}, {q.shape[1]} heads{shared}, width {q.shape[3]}"


PASS = Pass(name="attention", apply=apply, needs=frozenset({"normal"}), gives=frozenset({"attention"}), optional=True)
