"""Every error and warning text of the project: expected, got, where, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


def brief(error: BaseException) -> str:
    """`KindOfError: first line`; some errors of torch go on with the whole graph."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


class QCompileError(Exception):
    """Base of all errors that qcompile raises on purpose."""


class UnknownNameError(QCompileError, ValueError):
    """A name (option, kernel, platform, scheme) that is not in its list; the message shows the list."""

    def __init__(self, what: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {what} {name!r}.{hint} Known: {', '.join(names)}")


class OptionError(QCompileError, ValueError):
    """An option has a value of the wrong type or outside its set."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        super().__init__(f"option {option!r}: expected {expected}, got {value!r}")


class WeightError(QCompileError, ValueError):
    """A quantized weight's tensors contradict each other (shape, dtype, range)."""

    def __init__(self, argument: str, expected: str, got: str) -> None:
        super().__init__(f"{argument}: expected {expected}, got {got}")
        self.argument, self.expected, self.got = argument, expected, got


class LostWeightError(WeightError):
    """A weight's tensors in memory are not those of its file, and the file is not at hand: any use would give wrong numbers."""


DAMAGED = "The folder is damaged or incomplete: download or save it again."
CONFIG_WAY_OUT = "Correct config.json, or download it again."


class CheckpointError(WeightError):
    """The files of a folder cannot be read, or contradict each other, its config.json or the model."""

    def __init__(self, file: str, what: str, expected: str, got: str, way_out: str = DAMAGED) -> None:
        super().__init__(f"{file}: {what}" if what else file, expected, f"{got}. {way_out}")


class UnsupportedSchemeError(QCompileError, ValueError):
    """A checkpoint or module uses a quantization scheme that the front door does not know."""

    def __init__(self, module: str, scheme: str, known: Iterable[str], way_out: str) -> None:
        super().__init__(f"{module}: scheme {scheme} is not supported. Supported: {', '.join(sorted(known))}. {way_out}")
        self.module, self.scheme = module, scheme


class UnsupportedVersionError(QCompileError, ImportError):
    """A library is missing, or something fails in a release of it that qcompile was not tried with; the message says which were."""

    def __init__(self, sentence: str, error: BaseException | None = None) -> None:
        super().__init__(sentence if error is None else f"{sentence} What fails with it: {type(error).__name__}: {error}")


class MissingInternalError(RuntimeError):
    """Something of torch's private side that this release of torch does not have was asked for."""


class KernelRefusedError(QCompileError, ValueError):
    """A kernel asked for by name cannot take this weight or cannot run here."""

    def __init__(self, kernel: str, reasons: Iterable[str]) -> None:
        lines = "".join(f"\n  - {reason}" for reason in reasons)
        super().__init__(f"{kernel} cannot be used:{lines}")


class MissingOperatorError(QCompileError, RuntimeError):
    """A graph that was rewritten for another platform was run where that platform's operator is not registered."""

    def __init__(self, operator: str) -> None:
        super().__init__(
            f"{operator} is not registered in this process: the graph was rewritten for a platform that is not this machine. "
            "Compile without the option `platform` to run it here."
        )


class UnservedError(QCompileError, RuntimeError):
    """`fallback="error"`: at least one quantized linear got no kernel."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        body = "".join(f"\n  {line}" for line in self.lines)
        super().__init__(
            f'quantized linears without a kernel, and fallback="error" was asked for:{body}\n'
            'Use fallback="dense" (the default) or fallback="packed" to run them anyway.'
        )


class ReleasedWeightError(QCompileError, RuntimeError):
    """The raw weight was freed by `release=True`, and something needs it again."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} was released after packing (option release=True), so only the compiled model can run. "
            "Call the compiled model, or load the checkpoint again and compile it without release=True."
        )


class PassOrderError(QCompileError, AssertionError):
    """The pipeline's passes are in an order in which one lacks what it needs."""

    def __init__(self, name: str, missing: Iterable[str]) -> None:
        super().__init__(f"pass {name!r} needs {', '.join(sorted(missing))}, which no earlier pass gives")


class GeneratedCodeError(AssertionError):
    """Code that was written for a graph reads names it has not set; the graph is compiled without that code."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(f"the code written for this graph reads what it has not set: {', '.join(names)}")


NEEDED_VERSION = "{what} needs {library} {wanted}, got {found}. Run: pip install '{library}{wanted}'"
MISSING_INTERNAL = "torch {version} has no {what}; without it {use}"
STRANGE_TORCH_WARNING = (
    "qcompile: this release of torch lacks what qcompile needs, so graphs go to Inductor unchanged: {reasons}. {way_out}"
)
UNTRIED_VERSION = "qcompile was tried with {library} {tried}, and this is {version}: {command}."

TRAINING_WARNING = (
    "qcompile: gradients are needed here, so this graph goes to Inductor unchanged and keeps its dense arithmetic. "
    "For inference call the model under torch.no_grad() or torch.inference_mode()."
)

UNREAD_WARNING = (
    "qcompile: quantized weights were found, but none could be rewritten. {module}: {reason}. "
    "They run as they did without qcompile ({more} more; print(qcompile.report()) lists them all)."
)

LAST_GRAPH_WARNING = (
    "this is graph {number} of the at most {limit} that Dynamo makes of {function}. Further kinds of call run eagerly, "
    'without qcompile. To allow more, set torch._dynamo.config.{name} before compiling. TORCH_LOGS="recompiles" shows why there '
    "are so many."
)

FIRST_CALL_WARNING = (
    "qcompile: the compiled code of a graph failed when it was called ({problem}); the graph as it was captured works. So it runs "
    "unchanged from now on, with the right numbers and without quantized kernels. This is a fault of qcompile, please report it. "
    "torch._dynamo.reset() compiles the graph again."
)

CHANGED_WARNING = (
    "qcompile: a quantized weight was changed to a value that its packed form does not cover ({problem}). This graph runs unpacked "
    "and slowly from now on, with the right numbers. Call torch._dynamo.reset() to compile it again."
)

CACHE_SCHEME_WARNING = (
    "qcompile: {file} asks for quantized keys and values (kv_cache_scheme), which qcompile does not do. The cache keeps the "
    "model's dtype, which is more precise and takes more memory."
)
ALREADY_DENSE_WARNING = (
    "qcompile: {count} quantized layers of this model were already decompressed to dense weights (compressed-tensors does that at "
    "the first forward, or at loading with dequantize=True), for example {example}. They stay dense. To keep them packed, load the "
    "model again and call qcompile.compile(model) before its first forward, or load the folder with qcompile.load(path)."
)
OFFLOADED_WARNING = (
    "qcompile: {count} quantized layers are wrapped by another library (accelerate's offloading, for example), such as {example}. "
    "They are left as they are. Load the model on one device, without device_map, to run them packed."
)

NO_COMPILER_WARNING = (
    "qcompile: Inductor, which compiles the rest of a graph, needs a C++ compiler, and {problem}{detail}. The rest runs eagerly "
    'now, as with the option rest="eager"; quantized products run packed as always. To have the rest compiled, install g++ or '
    'clang++, or name a compiler in CXX. To silence this warning, give rest="eager".'
)
