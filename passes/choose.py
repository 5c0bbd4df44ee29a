"""Afterwards every site has a decision: its kernel, and for every other kernel the reasons why not."""

import logging
import math
from typing import Any

from torch import fx

from qcompile.errors import brief
from qcompile.graph.nodes import is_released, value
from qcompile.graph.text import structural_key
from qcompile.graph.walk import subgraph, through_views
from qcompile.hardware import Platform, platform
from qcompile.kernel import Kernel, KernelCall, Reasons, Site
from qcompile.meaning import Verdict
from qcompile.options import Options
from qcompile.pipeline import Decision, GraphSite, Pass, State, operand_nodes
from qcompile.proofs.kernel import verify
from qcompile.proofs.rewrite import Rewritten, verify_rewrite
from qcompile.targets.registry import against_options, kernels
from qcompile.timing import Times, times_for
from qcompile.timing.candidates import candidates
from qcompile.timing.order import Candidate, milliseconds, why_not
from qcompile.weights.cache import STORE
from qcompile.weights.derived import Derived
from qcompile.weights.disk_cache import Shelf
from qcompile.weights.recipe import pack_recipe

log = logging.getLogger(__name__)

_DENSE_ROWS = (128, 512)  # where a dense product might be quicker: it unpacks nothing
_DENSE_GAIN = 1.05
_PREDICTED_GAIN = 1.25  # a prediction may be that far off; below it there is nothing to tell
_ROOM = 0.5  # of the memory may be taken by dense weights
# What the check of a kernel on the packed form of these raw weights said; the rewrite is checked in every graph.
PROOFS: Derived[Verdict] = Derived()


def apply(state: State) -> None:
    """Ask every kernel, take the fastest that also passes the check by value."""
    verified = state.verified
    times = times_for(state.options, state.platform)
    decided: list[GraphSite] = []
    for site in state.sites:
        _decided(state, site, verified, times)
        if site.kernel is None and site.parts:
            decided.extend(site.apart())
            for part in site.parts:
                _decided(state, part, verified, times)
        else:
            decided.append(site)
    state.sites = decided
    try:
        _say_where_dense_wins(state, times)
    except Exception:  # only a remark
        log.debug("comparing with dense products", exc_info=True)
    state.need_all_served()


def _decided(state: State, site: GraphSite, verified: dict[Any, Verdict], times: Times) -> None:
    """Decide about one site; if that fails it has no kernel, and all others theirs."""
    try:
        site.decision = _decision(state, site, verified, times)
    except Exception as error:
        log.debug("deciding about %s", site.module, exc_info=True)
        site.decision = _none(state, f"no decision could be made: {brief(error)}")


def _none(state: State, reason: str) -> Decision:
    return Decision(reasons={name: (reason,) for name in kernels()}, fallback=state.options.fallback)


def _decision(state: State, site: GraphSite, verified: dict[Any, Verdict], times: Times) -> Decision:
    wrong = _rewrite_proven(state, site, verified)
    if wrong:
        return _none(state, wrong)
    reasons: dict[str, Reasons] = {}
    able: dict[str, Kernel] = {}
    for kernel in kernels().values():
        against = (*_options_against(kernel, state.options), *_reasons(kernel, site.site, state.platform))
        if against:
            reasons[kernel.name] = against
        else:
            able[kernel.name] = kernel
    found = candidates(site.site, _rows(site), able, times, state.options.kernels)
    reasons |= found.unpredicted
    decision = Decision(
        reasons=reasons,
        predicted_ms={candidate.name: candidate.predicted[1] * 1e3 for candidate in found.order},
        measured_ms={c.name: {str(m): s * 1e3 for m, s in c.measured.items()} for c in found.order if c.measured},
        fallback=state.options.fallback,
    )
    chosen: Candidate | None = None
    for candidate in found.order:
        if chosen is not None:
            reasons[candidate.name] = (why_not(candidate, chosen),)
            continue
        wrong, sqnr = _verified(state, site, able[candidate.name], verified)
        if wrong:
            reasons[candidate.name] = (wrong,)
        else:
            chosen, decision.kernel, decision.sqnr_db = candidate, able[candidate.name], sqnr
    if found.few and chosen is found.order[0]:
        wrong, _ = _verified(state, site, able[found.few], verified)
        decision.few_rows = 0 if wrong else found.few_rows
        reasons[found.few] = (wrong or f"runs calls of fewer than {found.few_rows} rows, inside the operator of {chosen.name}",)
    return decision


def _rows(linear: GraphSite) -> int | None:
    """How many rows of x this graph multiplies, None if that changes from call to call."""
    x = linear.node.args[0]
    sizes = value(x).shape[:-1] if isinstance(x, fx.Node) else ()
    return max(1, math.prod(sizes)) if all(isinstance(size, int) for size in sizes) else None


def _say_where_dense_wins(state: State, times: Times) -> None:
    """A packed weight stays the default; the report tells where memory would allow a dense one that is quicker."""
    served = [site for site in state.sites if site.kernel is not None]
    room = sum(2 * site.site.n * site.site.k for site in served) <= state.platform.memory * _ROOM
    for site in served if room else ():
        kernel = site.kernel
        assert kernel is not None
        measured = times.kept(site.site)
        for m in _DENSE_ROWS:
            known = m in measured.get(kernel.name, {}) and m in measured.get("dense", {})
            mine = measured[kernel.name][m] if known else times.predicted(kernel, site.site, m)
            dense = measured["dense"][m] if known else times.dense(site.site, m)
            if dense * (_DENSE_GAIN if known else _PREDICTED_GAIN) < mine:
                how = "measured" if known else "predicted"
                text = (
                    f"a dense bfloat16 weight would be faster at M = {m}: {how} {milliseconds(dense)} against {milliseconds(mine)}"
                )
                site.decision.dense = text
                break


def _reasons(kernel: Kernel, site: Site, where: Platform) -> Reasons:
    try:
        return kernel.reasons(site, where)
    except Exception as error:  # one target's bug must not take the others with it
        log.debug("asking %s", kernel.name, exc_info=True)
        return (f"could not be asked: {brief(error)}",)


def _options_against(kernel: Kernel, options: Options) -> Reasons:
    if not options.kernels and kernel.target == "reference":
        return (*against_options(kernel.name, options), "for checking, not for speed: only used if option kernels names it")
    return against_options(kernel.name, options)


def _verified(state: State, site: GraphSite, kernel: Kernel, verified: dict[Any, Verdict]) -> Verdict:
    """("" or what is wrong, SQNR in dB) of this kernel for this structure, checked once per structure or for every site."""
    key = (kernel.name, site.site)
    if state.options.verify != "every" and key in verified:
        return verified[key]
    verified[key] = result = _tried(state, site, kernel)
    return result


def _tried(state: State, site: GraphSite, kernel: Kernel) -> Verdict:
    """Packing and call are traced here, so that later passes only put them in their places; then they are compared by value."""
    operands = operand_nodes(site)
    shelf = Shelf.of(kernel, state.options)
    try:
        recipe = pack_recipe(state.emit, operands, kernel, site.site, state.constants, shelf)
    except Exception as error:  # a kernel's bug must not stop the user's model
        log.debug("tracing the packing of %s", kernel.name, exc_info=True)
        return f"its packing cannot be traced: {brief(error)}", None
    try:
        call = KernelCall(kernel, site.site)
        state.emit.trace(call, [value(site.node.args[0]), *(value(root) for root in recipe.roots)], call.key)  # type: ignore[arg-type]
    except Exception as error:  # as above
        log.debug("tracing the call of %s", kernel.name, exc_info=True)
        return f"its call cannot be traced: {brief(error)}", None
    if state.options.verify == "off" or not _runs_here(kernel, state.platform) or _is_released(state, site):
        return "", None
    leaves = recipe.pick(state.constants)
    raw = [leaf.tensor for leaf in leaves]
    known = (kernel.name, site.site, recipe.key)
    result = PROOFS.get(raw, *known)
    if result is None:  # otherwise it was compared in another graph of the same model
        result = verify(kernel, site.site, operands, recipe, leaves, state.constants)
        if result[0] and shelf is not None:  # perhaps only what stood on disk is wrong
            STORE.drop(recipe, leaves)
            recipe.shelf = None
            result = verify(kernel, site.site, operands, recipe, leaves, state.constants)
        PROOFS.put(raw, result, *known)
    return result


def _rewrite_proven(state: State, site: GraphSite, verified: dict[Any, Verdict]) -> str:
    """What is wrong with the canonical call that stands for the site's original graph, "" if nothing; once per structure."""
    if state.options.verify == "off" or _is_released(state, site):
        return ""
    key = ("rewrite", _structure(state, site), site.site)
    if key not in verified or state.options.verify == "every":
        try:
            verified[key] = verify_rewrite(site.node.args[0], _rewritten(site), state.constants), None  # type: ignore[arg-type]
        except Exception as error:  # a graph that cannot be run on a probe is not proven
            log.debug("proving %s", site.module, exc_info=True)
            verified[key] = f"the rewrite could not be proven: {brief(error)}", None
    return verified[key][0]


def _rewritten(site: GraphSite) -> list[Rewritten]:
    return [
        Rewritten(part.original, part.result, part.leaves, part.site.n, part.site.k, part.module) for part in site.parts or (site,)
    ]


def _structure(state: State, site: GraphSite) -> str:
    """Equal for sites whose results were computed by the same code: only then one proof of the rewrite holds for both."""
    roots = [part.original for part in site.parts or (site,)]
    source = through_views(site.node.args[0])  # type: ignore[arg-type]
    stop: dict[fx.Node, None] = {source: None}
    for node in subgraph(roots, {source, *state.constants}):
        stop.update((parent, None) for parent in node.all_input_nodes if parent in state.constants)
    return structural_key(roots, list(stop))


def _is_released(state: State, site: GraphSite) -> bool:
    """Whether raw weights are gone: the site was packed, and verified, in an earlier compilation."""
    leaves = [leaf for part in site.parts or (site,) for leaf in part.leaves]
    return any(is_released(state.constants[leaf].tensor) for leaf in leaves)


def _runs_here(kernel: Kernel, wanted: Platform) -> bool:
    return not wanted.simulated or not kernel.missing(platform())


def holds(state: State) -> list[str]:
    known = set(kernels())
    return [
        f"{site.module} has no reason for {name}"
        for site in state.sites
        for name in known - set(site.decision.reasons)
        if site.kernel is None or name != site.kernel.name
    ]


PASS = Pass(name="choose", apply=apply, needs=frozenset({"canonical"}), gives=frozenset({"decided"}), holds=holds)
