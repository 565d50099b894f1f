"""From a body's states to the score: classifier layers, Dense modules, the activation. All in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from batchscore.errors import CheckpointError
from batchscore.models.arch.entry import Layer
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import DenseSpec, ModelSpec, ModuleSpec, NormalizeSpec, TokenMethod
from batchscore.models.text.tokenizer import TextTokenizer
from batchscore.models.weights import empty_tensors, read_tensors

_LAYER_NORM_EPSILON = 1e-5  # torch's
_EMBEDDINGS = ("word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "wte.weight", "shared.weight")
# those that look at one number at a time and have no weights of their own
_ACTIVATIONS = (
    *("Identity", "Sigmoid", "Tanh", "ReLU", "ReLU6", "GELU", "SiLU", "ELU", "CELU", "SELU", "LeakyReLU", "Mish"),
    *("Softplus", "Softsign", "Softshrink", "Hardshrink", "Tanhshrink", "LogSigmoid", "Hardsigmoid", "Hardswish"),
    "Hardtanh",
)


def make_activation(name: str) -> nn.Module:
    """The torch.nn activation of a dotted name.

    Raises:
        CheckpointError: any other name. A checkpoint must not run code of its own, and a softmax would make a score
            depend on its neighbours.
    """
    kind = name.rsplit(".", 1)[-1]
    if not name.startswith("torch.nn.") or kind not in _ACTIVATIONS:
        raise CheckpointError(
            f"activation {name!r} is not supported", hint=f"supported, of torch.nn: {', '.join(_ACTIVATIONS)}"
        )
    activation: nn.Module = getattr(nn, kind)()
    return activation


_RANGES = {"Sigmoid": "0 to 1", "Tanh": "-1 to 1", "Identity": "unbounded"}


def value_range(activation: str, similarity: str) -> str:
    """The values a score can take, in words."""
    if similarity in ("cosine", "meanmaxsim"):
        return "-1 to 1"
    if similarity == "maxsim":
        return "up to the number of query tokens"
    return _RANGES.get(activation.rsplit(".", 1)[-1], "unbounded")


class Head(nn.Module):
    """Layers found by the names of their tensors, each with its function; float32 whatever the body's dtype."""

    def __init__(self, layers: Sequence[Layer], tensors: Mapping[str, Tensor], epsilon: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(layer.name, tensors, epsilon) for layer in layers)
        self.functions = [ACT2FN[layer.activation] if layer.activation else nn.Identity() for layer in layers]

    def forward(self, states: Tensor) -> Tensor:
        """float32 [n, out] from float32 [n, dim]."""
        for layer, function in zip(self.layers, self.functions, strict=True):
            states = function(layer(states))
        return states


def embeddings_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """The table of input embeddings.

    Raises:
        CheckpointError: there is none.
    """
    for name, tensor in tensors.items():
        if name.endswith(_EMBEDDINGS):
            return tensor
    raise CheckpointError(f"it has no embeddings: no tensor's name ends in {' or '.join(_EMBEDDINGS)}")


def _layer(name: str, tensors: Mapping[str, Tensor], epsilon: float) -> nn.Module:
    weight, bias = tensors[f"{name}.weight"].float(), tensors.get(f"{name}.bias")
    layer: nn.Linear | nn.LayerNorm
    if weight.dim() == 1:
        layer = nn.LayerNorm(len(weight), epsilon, bias=bias is not None)
    else:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.float())
    return layer


def load_head(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    tokenizer: TextTokenizer,
    tensors: dict[str, Tensor],
    native: PreTrainedConfig | None,
) -> nn.Module:
    """The head without its Dense modules: layers taken out of `tensors`, or a layer made of rows for answer tokens.

    `native` is the config object of the body's class, which knows the values that config.json leaves out.

    Raises:
        CheckpointError: `tensors` lack the layers, or the tokenizer an answer token.
    """
    if spec.answer_tokens:
        scale, cap = (1.0, 0.0) if spec.reads_like_vllm else _logit_rules(native)
        rows = _answer_rows(spec, tokenizer, tensors, is_tied=_is_tied(native))
        return answer_head(rows, spec.method, scale, cap)
    if not spec.head:
        return nn.Identity()
    config = checkpoint.config
    epsilon = next((config[key] for key in ("norm_eps", "layer_norm_eps") if key in config), 1e-12)
    return Head(spec.head, take_head(spec.head, tensors), epsilon)


def _is_tied(native: PreTrainedConfig | None) -> bool:
    """Whether the input embeddings are the output's too; of a model of images its language model says so."""
    configs = [native, getattr(native, "text_config", None)]
    return any(getattr(config, "tie_word_embeddings", config is native) for config in configs)


def take_head(layers: Sequence[Layer], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the tensors of a head from a checkpoint's, and return them by the names the layers use.

    Args:
        layers: of the head.
        tensors: of the checkpoint, where the backbone's name may precede a layer's.

    Raises:
        CheckpointError: a layer has no weight, or several tensors could be it.
    """
    head: dict[str, Tensor] = {}
    for layer in layers:
        for part in ("weight", "bias"):
            name = f"{layer.name}.{part}"
            matches = [key for key in tensors if key == name or key.endswith(f".{name}")]
            if len(matches) > 1:
                raise CheckpointError(f"the head's {name} could be any of {', '.join(matches)}")
            if matches:
                found = tensors.pop(matches[0])
                if part == "weight" or layer.bias:
                    head[name] = found
        is_vocabulary = layer.name.endswith(("decoder", "vocab_projector"))
        if is_vocabulary and f"{layer.name}.weight" not in head:
            head[f"{layer.name}.weight"] = embeddings_of(tensors)  # tied: one table for input and output
        shared_bias = layer.name.rpartition(".")[0] + ".bias"  # transformers keeps it beside the decoder
        if is_vocabulary and shared_bias in tensors:
            head[f"{layer.name}.bias"] = tensors.pop(shared_bias)
        if f"{layer.name}.weight" not in head:
            raise CheckpointError(
                f"it has no score head: {layer.name}.weight is not among its weights",
                hint="these weights are not those of a reranker, or classifier_from_token must name its answers",
            )
    return head


def _logit_rules(native: PreTrainedConfig | None) -> tuple[float, float]:
    """(factor, soft cap or 0) by which a language model makes logits of the products with its output embeddings."""
    keys = ("logits_scaling", "logit_scale", "lm_head_multiplier", "final_logit_softcapping")
    scaling, scale, multiplier, cap = (getattr(native, key, None) for key in keys)
    factor = (scale or 1.0) * (multiplier or 1.0)
    divides = not str(getattr(native, "model_type", "")).startswith("hyperclovax")  # as Granite does
    return factor / (scaling or 1.0) if divides else factor * (scaling or 1.0), cap or 0.0


def _answer_rows(spec: ModelSpec, tokenizer: TextTokenizer, tensors: Mapping[str, Tensor], *, is_tied: bool) -> Tensor:
    """Rows of the output embeddings, or of the input's where both share one table."""
    table = tensors.get("lm_head.weight")
    if table is None and not is_tied:
        raise CheckpointError("it lacks lm_head.weight, and by its config the embeddings do not stand in for that")
    if table is None:
        table = embeddings_of(tensors)
    ids: list[int] = []
    for token in spec.answer_tokens:
        number = token if isinstance(token, int) else tokenizer.token_id(token)
        if number is None or not 0 <= number < len(table):
            raise CheckpointError(
                f"the answer token {token!r} is not in the vocabulary",
                hint="classifier_from_token names tokens exactly as the tokenizer writes them",
            )
        ids.append(number)
    bias = tensors.get("lm_head.bias")
    if bias is not None and bias[ids].any():
        raise CheckpointError("its answer tokens have biases (lm_head.bias), which is not supported")
    return table[ids]


def answer_head(rows: Tensor, method: TokenMethod, scale: float = 1.0, cap: float = 0.0) -> nn.Module:
    """A head made of rows of the output embeddings: [true], or [false, true] for the difference of their logits.

    sigmoid(true - false) equals the softmax over the two, at true. A soft cap bounds each logit before that.
    """
    # float32 before the subtraction: the rows are close, and in 16 bits their difference loses most of its digits
    rows = rows.float() * scale
    signs = torch.tensor([[-1.0, 1.0]] if method == "from_2_way_softmax" else [[1.0]])
    if cap:
        return nn.Sequential(_linear(rows / cap), nn.Tanh(), _linear(signs * cap))
    return _linear(rows[1:] - rows[:1] if method == "from_2_way_softmax" else rows)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


class Dense(nn.Module):
    """activation(x @ weight.T + bias), one Dense module of a modules.json chain, plus x where it is residual."""

    def __init__(self, spec: DenseSpec, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        residual = weights.get("residual.weight")
        tensors = {f"linear.{key.rpartition('.')[2]}": t for key, t in weights.items() if key != "residual.weight"}
        shape = tuple(tensors.get("linear.weight", torch.empty(0)).shape)
        parts = {"linear.weight", "linear.bias"} if spec.bias else {"linear.weight"}
        projects = spec.residual and spec.in_features != spec.out_features
        fits = shape == (spec.out_features, spec.in_features) and tensors.keys() == parts
        if not fits or projects != (residual is not None):
            expected = f"{spec.in_features} to {spec.out_features} {'with' if spec.bias else 'without'} bias"
            raise CheckpointError(
                f"{name}: weights of module {spec.source!r} do not fit its config.json, which says {expected}: "
                f"{', '.join(weights)} of shape {shape}"
            )
        self.linear = _layer("linear", tensors, 0.0)
        self.activation = make_activation(spec.activation)
        self.residual: nn.Module | None = nn.Identity() if spec.residual else None
        if residual is not None:
            self.residual = _layer("residual", {"residual.weight": residual}, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, out_features] from float32 [n, in_features]."""
        result: Tensor = self.activation(self.linear(x))
        return result if self.residual is None else result + self.residual(x)


class Normalize(nn.Module):
    """Unit vectors."""

    def forward(self, x: Tensor) -> Tensor:
        """float32, same shape."""
        return normalize(x, dim=1)


def load_modules(checkpoint: Checkpoint, specs: Sequence[ModuleSpec], *, dry: bool = False) -> nn.Sequential:
    """Modules of a modules.json chain in order; without one, the identity.

    Raises:
        CheckpointError: weights that are missing or do not fit a module's config.json.
    """
    read = empty_tensors if dry else read_tensors

    def load(spec: ModuleSpec) -> nn.Module:
        if isinstance(spec, NormalizeSpec):
            return Normalize()
        weights = read(checkpoint, spec.source)
        if isinstance(spec, DenseSpec):
            return Dense(spec, weights, checkpoint.name)
        if {name: tuple(tensor.shape) for name, tensor in weights.items()} != dict.fromkeys(
            ("norm.weight", "norm.bias"), (spec.dimension,)
        ):
            raise CheckpointError(
                f"{checkpoint.name}: weights of module {spec.source!r} are not those of a LayerNorm "
                f"of {spec.dimension} features: {', '.join(weights)}"
            )
        return _layer("norm", weights, _LAYER_NORM_EPSILON)

    return nn.Sequential(*map(load, specs))


@torch.inference_mode()
def activate(activation: nn.Module, logits: Tensor) -> Tensor:
    """The scores of float32 logits, in the same shape; no score depends on the logits beside it.

    A vectorised function rounds the last few values of an array differently, where they do not fill a vector. So each
    distinct logit is computed once, and in float64, where that difference is far below float32's last bit.
    """
    distinct, where = torch.unique(logits, return_inverse=True)
    scores: Tensor = activation(distinct.double()).float()
    return scores[where]
