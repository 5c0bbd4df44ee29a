"""Runs the pipeline on a captured graph. An optional pass that fails as a whole is left out, on a fresh copy of the graph."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx

from qcompile.errors import brief
from qcompile.kernel import OTHER_KERNELS
from qcompile.pipeline import Pass, PassError, State, check_equality, run
from qcompile.reporting.rows import SiteReport

log = logging.getLogger(__name__)


def rewrite(
    passes: tuple[Pass, ...],
    gm: fx.GraphModule,
    pristine: fx.Graph,
    make_state: Callable[[fx.GraphModule], State],
    observe: Callable[[int, str, str, State], None],
) -> State:
    """The state behind the last pass; what the graph lost, because a pass was left out, is in the rows.

    gm is taken apart; pristine: a copy of its graph. Raises what the first pass that cannot be left out raised.
    """
    left_out: dict[str, str] = {}
    while True:
        state = make_state(gm)
        chosen = tuple(step for step in passes if step.name not in left_out)
        try:
            run(chosen, state, observe, check_equality(state) if state.options.check else None)
        except PassError as error:
            cause = error.__cause__
            assert cause is not None
            if not error.step.optional:
                raise cause from None
            left_out[error.step.name] = brief(cause)
            log.warning("pass %s is left out: %s", error.step.name, brief(cause))
            log.debug("pass %s failed", error.step.name, exc_info=cause)
            gm = fx.GraphModule(gm, copy.deepcopy(pristine))
            continue
        for name, reason in left_out.items():
            _tell(state, name, reason)
        return state


def _tell(state: State, name: str, reason: str) -> None:
    text = f"pass {name} was left out: {reason}"
    if name in OTHER_KERNELS:
        state.note(SiteReport(module="this graph", format=name), (text,))
        return
    for item in (part for site in state.sites for part in site.parts or (site,)):
        item.note = _and(item.note, text)
    state.declined = [replace(row, note=_and(row.note, text)) for row in state.declined]


def _and(note: str, text: Any) -> str:
    return f"{note}; {text}" if note else str(text)
