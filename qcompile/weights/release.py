"""Option release: frees the memory of raw weights that only packed kernels read."""

import logging
from collections.abc import Iterable

from torch import fx

from qcompile.graph.nodes import Constant, is_call, is_released
from qcompile.operators import dequantize_packed
from qcompile.weights.cache import STORE

log = logging.getLogger(__name__)


def releasable(captured: fx.Node) -> bool:
    """Whether an input of the captured graph is read by our own dequantization alone.

    Any other operator, run eagerly on a tensor without memory, would not raise but crash the process.
    """
    return len(captured.users) > 0 and all(is_call(user, dequantize_packed) for user in captured.users)


def release_raw(raw: Iterable[Constant]) -> None:
    """Free these raw weights. A tensor that shares its memory with another one is kept."""
    for constant in raw:
        tensor = constant.tensor
        if is_released(tensor):
            continue
        if tensor.untyped_storage().size() != tensor.numel() * tensor.element_size():
            log.info("%s shares its memory and is not released", constant.path)
            continue
        try:
            STORE.release(constant)
        except RuntimeError as error:  # memory that torch did not allocate (a mapped file) cannot be given back
            log.info("%s is not released: %s", constant.path, error)
