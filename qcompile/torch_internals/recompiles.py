"""How many graphs Dynamo may make of one function: more than its default for ours, and a word when the last one is made.

Past that number Dynamo runs further kinds of call eagerly and asks no back end, so it has to be said before.
"""

import logging
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from qcompile.errors import LAST_GRAPH_WARNING
from qcompile.torch_internals.private import private

_USE = "Dynamo's own limit of graphs stays"
config = private("torch._dynamo.config", _USE, essential=False)
_Converter = private("torch._dynamo.convert_frame.ConvertFrameAssert", _USE, essential=False)

log = logging.getLogger(__name__)

# Dynamo's own default is 8. Generation alone needs more: a first prompt, its continuation, beams, padding, another cache.
GRAPHS = 64
_DYNAMOS_DEFAULT = 8


def limit() -> int | None:
    """What to give torch.compile as recompile_limit: GRAPHS, or nothing if the user set a limit in Dynamo's config."""
    return GRAPHS if getattr(config, "recompile_limit", None) == _DYNAMOS_DEFAULT else None


def watch(tell: Callable[[str], None]) -> None:
    """Called by the back end while Dynamo compiles: allows GRAPHS graphs of this function, and tells if no further one is.

    Only the call of torch.compile that asked for this graph is changed, and not if its user set a limit, there or in Dynamo's
    config.
    """
    try:
        frame = _conversion()
        if frame is not None:
            _look(frame.f_locals, tell)
    except Exception:  # Dynamo's inside has changed: its own log tells when the limit is hit
        log.debug("the number of graphs could not be found out", exc_info=True)


def _conversion() -> FrameType | None:
    """The frame of the Dynamo method that compiles a function, if that is what is going on."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _Converter.__call__.__code__:
        frame = frame.f_back
    return frame


def _look(inside: dict[str, Any], tell: Callable[[str], None]) -> None:
    converter, code, size = inside["self"], inside["code"], inside["cache_size"]
    if converter._recompile_limit is None:
        converter._recompile_limit = limit()
    most = converter._recompile_limit or config.recompile_limit
    number = size.num_cache_entries_with_same_id_matched_objs + 1
    tries = max(size.total_cache_entries_all_regions, inside["compile_id"].frame_compile_id or 0) + 1
    if number >= most:
        tell(_text(code, number, most, "recompile_limit"))
    elif tries >= config.accumulated_recompile_limit:
        tell(_text(code, tries, config.accumulated_recompile_limit, "accumulated_recompile_limit"))


def _text(code: CodeType, number: int, most: int, name: str) -> str:
    where = f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})"
    return LAST_GRAPH_WARNING.format(number=number, limit=most, function=where, name=name)
