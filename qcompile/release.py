"""Option release: frees the memory of raw weights that only packed kernels read."""

import logging

from torch import fx

from qcompile.pipeline import State
from qcompile.store import STORE, is_released

log = logging.getLogger(__name__)


def release_raw(state: State, raw: set[fx.Node]) -> None:
    """Free each raw weight that the rewritten graph no longer reads. A tensor that shares its memory with another one is kept."""
    for node in raw:
        constant = state.constants[node]
        tensor = constant.tensor
        if is_released(tensor) or node.users:
            continue
        if tensor.untyped_storage().size() != tensor.numel() * tensor.element_size():
            log.info("%s shares its memory and is not released", constant.path)
            continue
        try:
            STORE.release(constant)
        except RuntimeError as error:  # memory that torch did not allocate (a mapped file) cannot be given back
            log.info("%s is not released: %s", constant.path, error)
