"""The pipeline: which passes run, in this order. What each needs and gives is checked when this module is imported."""

from qcompile.passes import attention, choose, cleanup, dense, fold, freeze, fuse, lower, normalize, precompute, prepack, recognize
from qcompile.pipeline import Pass, check_order

PIPELINE: tuple[Pass, ...] = check_order(
    (
        freeze.PASS,
        normalize.PASS,
        recognize.PASS,
        fuse.PASS,
        attention.PASS,
        dense.PASS,
        choose.PASS,
        prepack.PASS,
        fold.PASS,
        lower.PASS,
        precompute.PASS,
        cleanup.PASS,
    )
)
