"""The modules that sentence-transformers lists in modules.json, followed in their order from tokens to a score.

A module reads a value by its key and puts one under a key, its own or another. What counts is what reaches the key that
a score type ends at; a module whose output nothing reads changes nothing. A kind that is not listed here is refused:
left out, it would change every score in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchscore.errors import CheckpointError
from batchscore.models.checkpoint import SAVED, STATIC, Checkpoint, Module
from batchscore.models.spec import MODULES_JSON, DenseSpec, LayerNormSpec, ModuleSpec, NormalizeSpec, Source, Sourced
from batchscore.types import ScoreType

TANH = "torch.nn.modules.activation.Tanh"
TOKENS, SENTENCE, SCORES, LOGITS = "token_embeddings", "sentence_embedding", "scores", "causal_logits"

# kind -> (key read, key written) where the module's config.json names none; None: the key it reads
_KEYS: dict[str, tuple[str, str | None]] = {
    "Pooling": (TOKENS, SENTENCE),
    "SpladePooling": (TOKENS, SENTENCE),
    "Dense": (SENTENCE, None),
    "LayerNorm": (SENTENCE, None),
    "Normalize": (SENTENCE, None),
    "Dropout": (SENTENCE, None),
    "LogitScore": (LOGITS, SCORES),
    "MultiVectorMask": (TOKENS, None),  # its words are ColBERT's, `saved_files.marks` reads them
}
_FIRST = ("Transformer", "MLMTransformer", "CLIPModel", STATIC)
# transformer_task -> what the backbone puts out, and its key
_OUTPUTS = {
    "feature-extraction": TOKENS,
    "fill-mask": TOKENS,
    "text-generation": LOGITS,
    "sequence-classification": SCORES,
}
_MODEL_TYPES: dict[str, ScoreType] = {
    "CrossEncoder": "cross-encoder",
    "SentenceTransformer": "bi-encoder",
    "SparseEncoder": "bi-encoder",
    "MultiVectorEncoder": "late-interaction",
    "ColBERT": "late-interaction",
}
_ENDS: dict[ScoreType, str] = {"cross-encoder": SCORES, "bi-encoder": SENTENCE, "late-interaction": TOKENS}


@dataclass(frozen=True, slots=True)
class Value:
    """What stands under a key: the backbone's output and the modules it went through."""

    task: str  # the backbone's transformer_task
    token_modules: tuple[ModuleSpec, ...] = ()
    pooled: bool = False
    pooling: Module | None = None  # None: the architecture's own
    modules: tuple[ModuleSpec, ...] = ()  # behind the pooling
    answer: Module | None = None  # the LogitScore

    @property
    def last_modules(self) -> tuple[ModuleSpec, ...]:
        """Those behind the pooling, or on tokens where nothing pools them."""
        return self.modules if self.pooled else self.token_modules

    def then(self, module: ModuleSpec) -> Value:
        """The value after a module."""
        if self.pooled:
            return replace(self, modules=(*self.modules, module))
        return replace(self, token_modules=(*self.token_modules, module))


def module_kinds(checkpoint: Checkpoint) -> list[str]:
    """The kinds of modules in modules.json, in order.

    Raises:
        CheckpointError: an unknown kind, or one out of its place.
    """
    kinds = [module.kind for module in checkpoint.modules]
    for place, kind in enumerate(kinds):
        if kind not in (_KEYS if place else _FIRST):
            where = "" if place else " in its first place"
            raise CheckpointError(f"{checkpoint.name}: modules.json has a {kind}{where}, which is not supported")
    return kinds


def saved_score_type(checkpoint: Checkpoint) -> Sourced | None:
    """How pairs are scored, where sentence-transformers saved it; None where it did not.

    Raises:
        CheckpointError: a model type that is unknown.
    """
    kinds, name = module_kinds(checkpoint), checkpoint.saved.get("model_type")
    if name is not None:
        if name not in _MODEL_TYPES:
            raise CheckpointError(
                f"{checkpoint.name}: {SAVED}: model_type {name!r} is not supported",
                hint=f"supported: {', '.join(_MODEL_TYPES)}",
            )
        return _MODEL_TYPES[name], Source("file", SAVED)
    if "LogitScore" in kinds:
        return "cross-encoder", MODULES_JSON
    if "Dense" in kinds and not {"Pooling", STATIC} & {*kinds}:
        return "late-interaction", MODULES_JSON  # every token is projected, and nothing pools them
    return None


def is_multi_vector(checkpoint: Checkpoint) -> bool:
    """Whether sentence-transformers saved it for late interaction, so that its modules are all there is to do."""
    return checkpoint.saved.get("model_type") == "MultiVectorEncoder"


def follow(checkpoint: Checkpoint, score_type: ScoreType) -> Value | None:
    """What a score type reads at the end of the chain; None without a modules.json, or where the backbone scores.

    Raises:
        CheckpointError: a module reads what no module before it writes, or nothing writes what scores are made of.
    """
    if not module_kinds(checkpoint):
        return None
    values = _walked(checkpoint, score_type)
    value = _read(values, _ENDS[score_type])
    if value is None:
        if score_type == "cross-encoder" and checkpoint.saved.get("model_type") != "CrossEncoder":
            return None  # the user asks for one: the architecture may have a head of its own
        raise CheckpointError(f"{checkpoint.name}: no module of modules.json writes {_ENDS[score_type]}")
    if value.task != "sequence-classification":
        return value
    if behind := (*value.token_modules, *value.modules):
        raise CheckpointError(f"{checkpoint.name}: {behind[0].source} after a classifier's own head is not supported")
    return None


def _walked(checkpoint: Checkpoint, score_type: ScoreType) -> dict[str, Value]:
    """The value under each key when the chain has run."""
    first, *rest = checkpoint.modules
    values = _outputs(checkpoint, first)
    for module in rest:
        read, written = _keys(module)
        if score_type == "late-interaction":
            read, written = _keys_for_tokens(checkpoint, module)
        if module.kind in ("Dropout", "MultiVectorMask") or not read:
            continue
        value = _read(values, read)
        if value is None:
            if module.kind == "Normalize":
                continue
            raise CheckpointError(
                f"{checkpoint.name}: modules.json: {module.folder} reads {read}, which no module before it writes"
            )
        values[written] = _after(checkpoint, module, value)
    return values


def _outputs(checkpoint: Checkpoint, first: Module) -> dict[str, Value]:
    if first.kind == STATIC:
        return {TOKENS: Value("feature-extraction")}
    _, settings = checkpoint.sentence_config
    kinds = {module.kind for module in checkpoint.modules}
    implied = "fill-mask" if "MLMTransformer" in kinds else "text-generation" if "LogitScore" in kinds else ""
    task = settings.get("transformer_task") or implied or "feature-extraction"
    if task not in _OUTPUTS:
        raise CheckpointError(f"{checkpoint.name}: transformer_task {task!r} is not supported")
    key = settings.get("module_output_name")
    # what a user asks for may need the states that a classifier or a language model is made of
    return {TOKENS: Value("feature-extraction"), key if isinstance(key, str) else _OUTPUTS[task]: Value(task)}


def _keys(module: Module) -> tuple[str, str]:
    """(key the module reads, key it writes)."""
    read, written = _KEYS[module.kind]
    read = module.config.get("module_input_name") or read
    return read, module.config.get("module_output_name") or written or read


def _keys_for_tokens(checkpoint: Checkpoint, module: Module) -> tuple[str, str]:
    """The keys as a MultiVectorEncoder reads them; ("", "") for a module that it leaves out.

    sentence-transformers makes one of another model by pooling nothing, and by a Dense on tokens instead of on what was
    pooled. A Dense of PyLate's names no keys and is for tokens, too.
    """
    read, written = _keys(module)
    if module.kind == "Dense" and not module.config.get("module_input_name"):
        return TOKENS, module.config.get("module_output_name") or TOKENS
    if is_multi_vector(checkpoint) or SENTENCE not in (read, written):
        return read, written
    if module.kind == "Dense":
        return TOKENS, TOKENS
    if module.kind == "LayerNorm":
        raise CheckpointError(
            f"{checkpoint.name}: {module.folder} is for pooled vectors, and late interaction has none"
        )
    return "", ""


def _read(values: dict[str, Value], key: str) -> Value | None:
    """The value under a key; without a module that pools, texts are pooled as the architecture says."""
    if key == SENTENCE and SENTENCE not in values and TOKENS in values:
        return replace(values[TOKENS], pooled=True)
    return values.get(key)


def _after(checkpoint: Checkpoint, module: Module, value: Value) -> Value:
    is_vocabulary = value.task in ("fill-mask", "text-generation")
    if is_vocabulary != (module.kind in ("SpladePooling", "LogitScore")) and not value.pooled:
        raise CheckpointError(
            f"{checkpoint.name}: modules.json: {module.folder} after a backbone for {value.task} is not supported"
        )
    match module.kind:
        case "Pooling" | "SpladePooling":
            return replace(value, pooled=True, pooling=module)
        case "LogitScore":
            return replace(value, pooled=True, answer=module)
        case "Dense":
            return value.then(_dense(checkpoint, module))
        case "LayerNorm":
            return value.then(LayerNormSpec(module.folder, _number(checkpoint, module, "dimension")))
        case _:
            return value.then(NormalizeSpec(module.folder))


def _dense(checkpoint: Checkpoint, module: Module) -> DenseSpec:
    return DenseSpec(
        module.folder,
        _number(checkpoint, module, "in_features"),
        _number(checkpoint, module, "out_features"),
        module.config.get("bias", True),
        module.config.get("activation_function", TANH),
        bool(module.config.get("use_residual")),
    )


def _number(checkpoint: Checkpoint, module: Module, key: str) -> int:
    if key not in module.config:
        raise CheckpointError(f"{checkpoint.name}: {module.folder}/config.json lacks {key!r}")
    return int(module.config[key])


def check_widths(checkpoint: Checkpoint, modules: Sequence[ModuleSpec], width: int) -> int:
    """How wide the last module's output is.

    Args:
        checkpoint: for errors.
        modules: in order.
        width: of the first one's input.

    Raises:
        CheckpointError: a module takes another width than the one before it gives.
    """
    for module in modules:
        key, taken = ("dimension", width) if isinstance(module, NormalizeSpec) else _taken(module)
        if taken != width:
            raise CheckpointError(
                f"{checkpoint.name}: {module.source}/config.json has {key} {taken}, "
                f"and the vectors before it are {width} wide"
            )
        width = module.out_features if isinstance(module, DenseSpec) else width
    return width


def _taken(module: DenseSpec | LayerNormSpec) -> tuple[str, int]:
    return ("in_features", module.in_features) if isinstance(module, DenseSpec) else ("dimension", module.dimension)
