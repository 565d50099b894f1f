"""Linear layers of a body on a CPU, as oneDNN runs them best: weights in its own order, the activation in the product.

A pass over a loaded body, by structure: each `nn.Linear` is replaced, and where a module applies an activation to what
its linear layer gives, the activation goes into it. What is replaced follows from the CPU and the body alone, never
from a timing, so that a job that is resumed gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchscore.runners.native import are_off
from batchscore.runners.replacing import are_close, children, made_up, output_of

_SOME_TOKENS = 2_048  # for which oneDNN chooses the order of a weight
_SPREAD = 4.0  # of numbers that tell activations apart
_TOLERANCE = 0.02  # of a trial, which would be off by much more where an activation stood elsewhere
Activation = tuple[str, str]  # in oneDNN's words, with the algorithm
NO_ACTIVATION: Activation = ("none", "")
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    ("gelu", "none"): functional.gelu,
    ("gelu", "tanh"): lambda numbers: functional.gelu(numbers, approximate="tanh"),
    ("swish", ""): functional.silu,
    ("relu", ""): functional.relu,
}


class PackedLinear(nn.Module):
    """A linear layer whose weight is in the order that oneDNN multiplies it in."""

    def __init__(self, linear: nn.Linear, activation: Activation = NO_ACTIVATION) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.activation = activation
        self.is_read = False  # the model looks at the weight
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _SOME_TOKENS)

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features], made anew."""
        self.is_read = True
        return self._packed.to_dense()

    def forward(self, states: Tensor) -> Tensor:
        """[..., out_features] of [..., in_features]."""
        name, algorithm = self.activation
        result: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._packed, self.bias, name, [], algorithm)
        return result

    def unpacked(self) -> nn.Linear:
        """The layer as it was."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight, linear.bias = nn.Parameter(self._packed.to_dense(), requires_grad=False), self.bias
        return linear


@torch.inference_mode()
def pack_linears(bodies: Iterable[nn.Module], forward: Callable[[], object]) -> None:
    """Replace the linear layers of bodies where oneDNN is the faster way to run them, on x86 CPUs.

    With AVX2 alone its activations are slower than torch's, and stay where they are.

    Args:
        bodies: on a CPU.
        forward: runs them on a few tokens; layers whose weight they read themselves stay as they were.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if are_off() or capability not in ("AVX2", "AVX512") or not torch.backends.mkldnn.is_available():
        return
    bodies = list(bodies)
    for body in bodies:
        if capability == "AVX512":
            for module in list(body.modules()):
                _fuse_activation(module)
        for parent, name, child in children(body):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
    forward()
    for body in bodies:
        for parent, name, child in children(body):
            if isinstance(child, PackedLinear) and child.is_read:
                setattr(parent, name, child.unpacked())


def _fuse_activation(module: nn.Module) -> None:
    """Let a module's linear layer apply the module's activation, if that leaves the module's outputs as they were."""
    activations = [(name, child, known) for name, child in module.named_children() if (known := _activation(child))]
    if len(activations) != 1:
        return
    ((name, child, known),) = activations
    for source, linear in [(name, layer) for name, layer in module.named_children() if type(layer) is nn.Linear]:
        (numbers,) = made_up(torch.float32, (1, 3, linear.in_features))
        states = (_SPREAD * numbers).to(linear.weight.dtype)
        before, activated = _run(module, child, states)
        if before is None or activated is None or not torch.equal(activated, linear(states)):
            continue
        setattr(module, source, PackedLinear(linear, known))
        setattr(module, name, nn.Identity())
        if not are_close(output_of(module, states), before, _TOLERANCE):
            setattr(module, source, linear)
            setattr(module, name, child)
        return


def _activation(module: nn.Module) -> Activation | None:
    """What an activation is in oneDNN's words, found out by its values."""
    if not type(module).__module__.endswith((".activations", ".activation")):
        return None
    numbers = torch.linspace(-_SPREAD, _SPREAD, 33)
    return next((name for name, known in ACTIVATIONS.items() if torch.equal(module(numbers), known(numbers))), None)


def _run(module: nn.Module, activation: nn.Module, states: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(what a module makes of states, what its activation got); None for what is not one tensor."""
    got: list[object] = []
    hook = activation.register_forward_pre_hook(lambda _, inputs: got.extend(inputs))
    output = output_of(module, states)
    hook.remove()
    first = got[0] if len(got) == 1 else None
    return output, first if isinstance(first, Tensor) else None
