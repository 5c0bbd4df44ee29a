"""Afterwards every site has a decision: its kernel, and for every other kernel the reasons why not."""

import logging
from dataclasses import replace

from qcompile.errors import UnservedError
from qcompile.graph import is_released
from qcompile.kernels import Kernel, Reasons, Site, against_options, kernels, selects
from qcompile.options import Options
from qcompile.packing import operand_nodes, pack_recipe
from qcompile.passes.fuse import unfuse
from qcompile.pipeline import GraphSite, Pass, State
from qcompile.platform import Platform, platform
from qcompile.shelf import Shelf
from qcompile.store import STORE
from qcompile.verify import verify, verify_rewrite

log = logging.getLogger(__name__)

# Rows of x for which the predicted times are weighed: decode, a small batch, prefill. One order for all graphs of a model,
# because two kernels for one weight would keep it in memory twice.
_ROWS = (1, 8, 128)


def apply(state: State) -> None:
    """Ask every kernel, take the fastest that also passes the check by value."""
    verified: dict[tuple[str, Site], tuple[str, float | None]] = {}
    decided: list[GraphSite] = []
    for site in state.sites:
        _decide(state, site, verified)
        if site.kernel is None and site.parts:
            decided.extend(unfuse(site))
            for part in site.parts:
                _decide(state, part, verified)
        else:
            decided.append(site)
    state.sites = decided
    unserved = [site.report for site in state.sites if site.kernel is None]
    if state.options.fallback == "error" and (unserved or state.declined):
        lines = [f"{row.module}: {row.declined}" for row in state.declined]
        for row in unserved:
            lines += [f"{row.module}: {name}: {reason}" for name, why in row.reasons.items() for reason in why]
        raise UnservedError(lines)


def _decide(state: State, site: GraphSite, verified: dict[tuple[str, Site], tuple[str, float | None]]) -> None:
    reasons: dict[str, Reasons] = {}
    wrong = _rewrite_proven(state, site, verified)
    if wrong:
        reasons = {name: (wrong,) for name in kernels()}
        site.report = replace(site.report, reasons=reasons, fallback=state.options.fallback)
        return
    able: list[tuple[float, int, Kernel]] = []
    predicted: dict[str, float] = {}
    for number, kernel in enumerate(kernels().values()):
        against = (*_options_against(kernel, state.options), *_reasons(kernel, site.site, state.platform))
        if against:
            reasons[kernel.name] = against
            continue
        try:
            able.append((_rank(kernel, site.site, state), number, kernel))
            predicted[kernel.name] = kernel.seconds(site.site, 1, state.platform) * 1e3
        except Exception as error:  # as in _reasons
            able = [item for item in able if item[2] is not kernel]
            reasons[kernel.name] = (f"its time could not be predicted: {type(error).__name__}: {error}",)
    able.sort(key=lambda item: item[:2])
    sqnr: float | None = None
    for _, _, kernel in able:
        if site.kernel is not None:
            reasons[kernel.name] = (_slower(kernel, site.kernel, predicted),)
            continue
        wrong, sqnr = _verified(state, site, kernel, verified)
        if wrong:
            reasons[kernel.name] = (wrong,)
        else:
            site.kernel = kernel
    site.report = replace(
        site.report,
        kernel=site.kernel.name if site.kernel else None,
        reasons=reasons,
        predicted_ms=predicted,
        sqnr_db=sqnr if site.kernel else None,
        fallback=state.options.fallback,
    )


def _reasons(kernel: Kernel, site: Site, where: Platform) -> Reasons:
    try:
        return kernel.reasons(site, where)
    except Exception as error:  # one target's bug must not take the others with it
        log.debug("asking %s", kernel.name, exc_info=True)
        return (f"could not be asked: {type(error).__name__}: {error}",)


def _options_against(kernel: Kernel, options: Options) -> Reasons:
    if not options.kernels and kernel.target == "reference":
        return (*against_options(kernel.name, options), "for checking, not for speed: only used if option kernels names it")
    return against_options(kernel.name, options)


def _rank(kernel: Kernel, site: Site, state: State) -> float:
    """Order of preference: the place in option kernels, or the product of the predicted times."""
    for place, name in enumerate(state.options.kernels):
        if selects((name,), kernel):
            return float(place)
    result = 1.0
    for rows in _ROWS:
        result *= max(kernel.seconds(site, rows, state.platform), 1e-9)
    return result


def _slower(kernel: Kernel, chosen: Kernel, predicted: dict[str, float]) -> str:
    mine, theirs = predicted[kernel.name], predicted[chosen.name]
    return f"could run; {chosen.name} was preferred (predicted at one row: {mine:.3g} ms here, {theirs:.3g} ms there)"


def _verified(
    state: State, site: GraphSite, kernel: Kernel, verified: dict[tuple[str, Site], tuple[str, float | None]]
) -> tuple[str, float | None]:
    """("" or what is wrong, SQNR in dB) of this kernel for this structure, checked once per structure or for every site."""
    if state.options.verify == "off" or not _runs_here(kernel, state.platform) or _is_released(state, site):
        return "", None
    key = (kernel.name, site.site)
    if state.options.verify == "structure" and key in verified:
        return verified[key]
    operands = operand_nodes(site)
    shelf = Shelf.of(kernel, state.options)
    try:
        recipe = pack_recipe(state.emit, operands, kernel, site.site, state.constants, shelf)
    except Exception as error:  # as above
        log.debug("tracing the packing of %s", kernel.name, exc_info=True)
        result: tuple[str, float | None] = (f"its packing cannot be traced: {type(error).__name__}: {error}", None)
    else:
        leaves = recipe.pick(state.constants)
        result = verify(kernel, site.site, operands, recipe, leaves, state.constants)
        if result[0] and shelf is not None:  # perhaps only what stood on disk is wrong
            STORE.drop(recipe, leaves)
            recipe.shelf = None
            result = verify(kernel, site.site, operands, recipe, leaves, state.constants)
    verified[key] = result
    return result


def _rewrite_proven(state: State, site: GraphSite, verified: dict[tuple[str, Site], tuple[str, float | None]]) -> str:
    """What is wrong with the canonical call that stands for the site's original graph, "" if nothing; once per structure."""
    if state.options.verify == "off" or _is_released(state, site):
        return ""
    key = (f"rewrite of {len(site.parts) or 1}", site.site)
    if key not in verified or state.options.verify == "every":
        try:
            verified[key] = verify_rewrite(site, state.constants), None
        except Exception as error:  # a graph that cannot be run on a probe is not proven
            log.debug("proving %s", site.report.module, exc_info=True)
            verified[key] = f"the rewrite could not be proven: {type(error).__name__}: {error}", None
    return verified[key][0]


def _is_released(state: State, site: GraphSite) -> bool:
    """Whether raw weights are gone: the site was packed, and verified, in an earlier compilation."""
    leaves = [leaf for part in site.parts or (site,) for leaf in part.leaves]
    return any(is_released(state.constants[leaf].tensor) for leaf in leaves)


def _runs_here(kernel: Kernel, wanted: Platform) -> bool:
    return not wanted.simulated or not kernel.missing(platform())


def holds(state: State) -> list[str]:
    known = set(kernels())
    return [
        f"{site.report.module} has no reason for {name}"
        for site in state.sites
        for name in known - set(site.report.reasons)
        if name != site.report.kernel
    ]


PASS = Pass(name="choose", apply=apply, needs=frozenset({"canonical"}), gives=frozenset({"decided"}), holds=holds)
