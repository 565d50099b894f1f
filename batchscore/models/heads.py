"""Between a body's states and the score: classifier layers, Dense modules, the activation. All in float32."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from batchscore.errors import CheckpointError
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.spec import DenseSpec

_ACTIVATIONS = ("Identity", "Sigmoid", "Tanh", "ReLU", "GELU", "SiLU", "ELU", "LeakyReLU", "Mish", "Softplus")


def make_activation(name: str) -> nn.Module:
    """The torch.nn activation of a dotted name.

    Raises:
        CheckpointError: it is another one. A checkpoint may not run code of its own, and a softmax would make a row's
            score depend on its neighbours.
    """
    kind = name.rsplit(".", 1)[-1]
    if not name.startswith("torch.nn.") or kind not in _ACTIVATIONS:
        raise CheckpointError(
            f"activation {name!r} is no function of one number", hint=f"of torch.nn: {', '.join(_ACTIVATIONS)}"
        )
    activation: nn.Module = getattr(nn, kind)()
    return activation


_RANGES = {"Sigmoid": "0 to 1", "Tanh": "-1 to 1", "Identity": "unbounded"}


def value_range(activation: str, similarity: str) -> str:
    """The values a score can take, for the person who reads the file."""
    if similarity == "cosine":
        return "-1 to 1"
    if similarity == "maxsim":
        return "up to the number of query tokens"
    return _RANGES.get(activation.rsplit(".", 1)[-1], "unbounded")


class ScoreHead(nn.Module):
    """The layers of a *ForSequenceClassification class after its body, applied to the first token's state."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        # copies, since the body may go on in 16 bits; eval mode comes along
        self.layers = nn.ModuleList(copy.deepcopy(layer).float() for layer in layers)

    def forward(self, first: Tensor) -> Tensor:
        """float32 [n]: the logit of each sequence, from float32 [n, dim]."""
        states = first[:, None]  # transformers' heads take the states of a whole sequence and pick token 0 themselves
        for layer in self.layers:
            states = layer(states)
        return states.reshape(len(first))


class Dense(nn.Module):
    """activation(x @ weight.T + bias), one Dense module of a modules.json chain."""

    def __init__(self, spec: DenseSpec, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.in_features, spec.out_features, bias=spec.bias)
        try:
            self.linear.load_state_dict({key.removeprefix("linear."): tensor for key, tensor in weights.items()})
        except RuntimeError as error:
            raise CheckpointError(
                f"{name}: weights of module {spec.folder!r} do not fit its config.json: {error}"
            ) from error
        self.activation = make_activation(spec.activation)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, out_features] from float32 [n, in_features]."""
        result: Tensor = self.activation(self.linear(x))
        return result


def load_dense(checkpoint: Checkpoint, specs: Sequence[DenseSpec]) -> nn.Sequential:
    """The checkpoint's Dense chain in order; without one, the identity."""
    return (
        nn.Sequential(*(Dense(spec, checkpoint.read_weights(spec.folder), checkpoint.name) for spec in specs))
        .float()
        .eval()
    )


@torch.inference_mode()
def activate(activation: nn.Module, logits: Tensor) -> Tensor:
    """float32 [n]: the score of each logit."""
    result: Tensor = activation(logits)
    return result
