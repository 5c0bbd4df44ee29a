"""Symbolic sizes: their value in the call that was traced, what is known of them, what they depend on."""

from qcompile.torch_internals.private import private

_USE = "symbolic sizes cannot be compared"
optimization_hint = private("torch.fx.experimental.symbolic_shapes.optimization_hint", _USE, takes=["fallback"])
statically_known_true = private("torch.fx.experimental.symbolic_shapes.statically_known_true", _USE)
free_symbols = private("torch.fx.experimental.symbolic_shapes.free_symbols", _USE)
free_unbacked_symbols = private("torch.fx.experimental.symbolic_shapes.free_unbacked_symbols", _USE)
