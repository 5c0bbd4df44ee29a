"""What AOTAutograd's run-time wrapper does around a compiled graph, and whether the caller of that graph can do it instead.

The wrapper takes some 20 microseconds a call, more than the rest of the Python code of a layer's decode step. Of what it does, a
caller can do three things: gradients are off during the call, versions of tensors that the graph writes to go up, dynamic sizes of
results are marked. Everything else the metadata may ask for, and everything it says that is not known here, keeps the wrapper.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch

from qcompile.torch_internals.tensors import autocast_is_on

# Fields of the metadata that ask nothing of the wrapper of a graph without a backward, whatever they hold: they describe the trace
# or the backward, or are looked at below.
_DESCRIBING = frozenset(
    [
        "input_info",
        "output_info",
        "keep_input_mutations",
        "traced_tangents",
        "traced_tangents_descs",
        "traced_tangent_metas",
        "subclass_inp_meta",
        "subclass_fw_graph_out_meta",
        "subclass_tangent_meta",
        "num_symints_saved_for_bw",
        "num_tensors_saved_with_no_vc_check",
        "num_opaque_objects_saved_for_bw",
        "deterministic",
        "static_input_indices",
        "bw_donated_idxs",
        "num_backward_tokens",
        "graphsafe_rng_device",
        "compile_id_str",
        "tangent_source_stack_traces",
        "saved_tensor_is_graph_input",
    ]
)
# Fields that ask for something unless they are empty, 0, False or None.
_ASKING = frozenset(
    [
        "num_intermediate_bases",
        "grad_enabled_mutation",
        "act_input_indices",
        "act_input_paths",
        "tokens",
        "num_graphsafe_rng_states",
        "indices_of_inputs_that_requires_grad_with_mutations_in_bw",
        "graphsafe_rng_state_index",
        "mutated_inp_stream_indices",
    ]
)
_DESCRIBING_INPUT = frozenset(
    [
        "is_leaf",
        "mutates_data",
        "mutations_hidden_from_autograd",
        "mutations_under_no_grad_or_inference_mode",
        "keep_input_mutations",
        "requires_grad",
    ]
)
_ASKING_INPUT = frozenset(
    [
        "mutates_metadata",
        "mutation_inductor_storage_resize",
        "mutates_storage_metadata",
        "mutation_is_shallow_copy_data",
    ]
)
_DESCRIBING_OUTPUT = frozenset(
    [
        "output_type",
        "raw_type",
        "dynamic_dims",
        "requires_grad",
        "requires_grad_for_backward",
    ]
)
_ASKING_OUTPUT = frozenset(
    [
        "base_idx",
        "view_meta_sequence",
    ]
)


@dataclass(frozen=True, slots=True)
class Duties:
    """What the caller has to do in the wrapper's place, beside turning gradients off.

    written  numbers of the inputs whose versions go up
    dynamic  numbers of the results that have dynamic sizes, and which those are
    """

    written: tuple[int, ...] = ()
    dynamic: tuple[tuple[int, frozenset[int]], ...] = ()


def duties(meta: Any) -> Duties | str:
    """What the wrapper would do, by AOTAutograd's metadata of a graph without a backward; a sentence if it has to stay."""
    problem = (
        _unknown(meta, _DESCRIBING, _ASKING)
        or next((text for info in meta.input_info if (text := _unknown(info, _DESCRIBING_INPUT, _ASKING_INPUT))), "")
        or next((text for info in meta.output_info if (text := _unknown(info, _DESCRIBING_OUTPUT, _ASKING_OUTPUT))), "")
    )
    if problem:
        return problem
    plain = {type(item).__name__ for item in (*meta.subclass_inp_meta, *meta.subclass_fw_graph_out_meta)}
    if plain - {"PlainTensorMeta"}:
        return f"{', '.join(sorted(plain - {'PlainTensorMeta'}))} is taken apart or put together"
    if meta.num_outputs_aliased or meta.num_mutated_inp_runtime_indices:
        return "results are made views of inputs, or inputs are written to, after the call"
    if meta.is_rng_op_functionalized or autocast_is_on():
        return "random state or autocast is taken care of"
    dynamic = ((number, frozenset(info.dynamic_dims)) for number, info in enumerate(meta.output_info) if info.dynamic_dims)
    return Duties(tuple(meta.mutated_graph_handled_indices_seen_by_autograd), tuple(dynamic))


def _unknown(record: Any, describing: frozenset[str], asking: frozenset[str]) -> str:
    """What in this record may ask for something that a caller does not do, "" if nothing does."""
    names = [item.name for item in fields(record)]
    asked = [name for name in names if name in asking and _is_set(name, getattr(record, name))]
    strange = [name for name in names if name not in describing | asking]
    if strange:
        return f"this version of torch says {', '.join(strange)}, which is not known here"
    return f"{', '.join(asked)} asks for something" if asked else ""


def _is_set(name: str, item: Any) -> bool:
    """A count of 0 and a flag that is off ask for nothing; an index of 0 does, and so does turning gradients off for good."""
    if isinstance(item, list | tuple):
        return any(part is not None for part in item)
    none_for_nothing = name == "grad_enabled_mutation" or (type(item) is int and not name.startswith("num_"))
    return item is not None if none_for_nothing else bool(item)


def mark_dynamic(result: Any, dims: Iterable[int]) -> None:
    """Tell Dynamo, which may go on with this tensor in another graph, which of its sizes change from call to call."""
    known: set[int] = getattr(result, "_dynamo_propagated_dynamic_indices", set())
    result._dynamo_propagated_dynamic_indices = known | set(dims)


def without_gradients(call: Any, *args: Any) -> Any:
    """The call with gradients off, as the wrapper of a graph without a backward makes it."""
    with torch.no_grad():
        return call(*args)
