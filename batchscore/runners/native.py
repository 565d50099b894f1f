"""Attention on a CPU by a kernel of our own (attention.cpp), built on first use where a C++ compiler is.

torch's kernel handles what is left of a vector one element at a time, so that odd lengths cost twice as much, and it
needs a call for each length. Ours reads a pack as it lies. The library is kept in the user's cache folder under a
name that says what it was made of: the source, the compiler and the instructions of the CPU. Where there is no
compiler, or the kernel gives other numbers than torch, torch's is used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from batchscore.runners.masks import Rule
from batchscore.runners.sequences import Sequences

SWITCH = "BATCHSCORE_KERNELS"  # "off" in the environment: neither build nor use the kernel
_SOURCE = Path(__file__).with_name("attention.cpp")
_FLAGS = "-std=c++17 -O3 -shared -fPIC -fno-math-errno -fno-trapping-math"
_INSTRUCTIONS = {"AVX2": "-mavx2 -mfma", "AVX512": "-mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl"}
_BFLOAT16 = "-mavx512bf16"
_MOST_NUMBERS = 2**18  # of a head's keys in a sequence: what a core's cache has room for
_LARGEST_HEAD = 1024  # components; the kernel's buffer of a row

_Function = Callable[..., None]


class _Shape(ctypes.Structure):
    """`Shape` of attention.cpp."""

    _fields_ = (
        ("query_offsets", ctypes.c_void_p),
        ("key_offsets", ctypes.c_void_p),
        ("seen", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("sequences", "heads", "key_heads", "dim", "value_dim", "window")),
        *((f"{name}_strides", ctypes.c_int64 * 2) for name in ("query", "key", "value", "out")),
        ("causal", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions of the library by the dtype that they take, and how it came about."""

    functions: Mapping[torch.dtype, _Function]
    reason: str


@lru_cache(1)
def kernels() -> Kernels:
    """Those of this machine, built if they have to be; none of them with the reason."""
    if os.environ.get(SWITCH) == "off":
        return Kernels({}, f"{SWITCH}=off")
    try:
        compiler = _compiler()
        library = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        return Kernels({}, f"no kernel: {error}")
    names = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}
    found = {dtype: getattr(library, name) for dtype, name in names.items() if hasattr(library, name)}
    right = {dtype: function for dtype, function in found.items() if _agrees(function, dtype)}
    return Kernels(right, f"built by {compiler}" if right else "no kernel: it gives other numbers than torch")


def fits_native(query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences) -> bool:
    """Whether the kernel takes these [tokens, heads, dim] and this rule."""
    if query.device.type != "cpu" or query.dtype not in kernels().functions or rule.softcap is not None:
        return False
    # a token that sees none but hidden ones has no output, and torch's is not a number
    may_be_blind = sequences.seen is not None and (rule.causal or rule.window is not None)
    sizes, tensors = (query.shape[-1], value.shape[-1]), (query, key, value)
    strides = [tensor.stride(axis) for tensor in tensors for axis in (0, 1)]
    return (
        not may_be_blind
        and max(sizes) <= _LARGEST_HEAD
        and sequences.longest * max(sizes) <= _MOST_NUMBERS
        and all(tensor.stride(2) == 1 for tensor in tensors)
        and all(number % 2 == 0 for number in (*sizes, *strides))  # bfloat16 is read in pairs
    )


def native_attention(
    query: Tensor, key: Tensor, value: Tensor, rule: Rule, sequences: Sequences, *, from_first: bool
) -> Tensor:
    """[queries, heads, dim]: attention inside each sequence of a pack, with the arguments of `run_attention`."""
    offsets = sequences.offsets
    query_offsets = torch.arange(len(offsets), dtype=torch.int32) if from_first else offsets
    return _call(
        kernels().functions[query.dtype], (query, key, value), query_offsets, offsets, sequences.seen_tokens, rule
    )


def _call(
    function: _Function,
    states: tuple[Tensor, Tensor, Tensor],
    query_offsets: Tensor,
    key_offsets: Tensor,
    seen: Tensor | None,
    rule: Rule,
) -> Tensor:
    query, key, value = states
    output = torch.empty(*query.shape[:2], value.shape[2], dtype=query.dtype)
    scale = query.shape[2] ** -0.5 if rule.scaling is None else rule.scaling
    shape = _Shape(
        query_offsets.data_ptr(),
        key_offsets.data_ptr(),
        None if seen is None else seen.data_ptr(),
        len(key_offsets) - 1,
        query.shape[1],
        key.shape[1],
        query.shape[2],
        value.shape[2],
        rule.window or 0,
        *((ctypes.c_int64 * 2)(*tensor.stride()[:2]) for tensor in (*states, output)),
        rule.causal,
        scale,
    )
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (*states, output))
    function(*pointers, ctypes.byref(shape))
    return output


# ---- the library


def _compiler() -> str:
    """Path of a C++ compiler; OSError without one."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise FileNotFoundError("there is no C++ compiler")


def _built(compiler: str) -> Path:
    """The library, compiled unless it is in the cache folder."""
    flags = [*_FLAGS.split(), *_INSTRUCTIONS.get(capability := torch.backends.cpu.get_cpu_capability(), "").split()]
    if capability == "AVX512" and torch.cpu._is_avx512_bf16_supported():
        flags.append(_BFLOAT16)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    made_of = hashlib.sha256(b"\0".join([_SOURCE.read_bytes(), " ".join(flags).encode(), version]))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchscore"
    path = folder / f"attention-{made_of.hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # other processes may build it at the same moment: each its own file, and the last one stays
        with tempfile.TemporaryDirectory(dir=folder) as building:
            made = Path(building, path.name)
            subprocess.run(
                [compiler, *flags, str(_SOURCE), "-o", str(made)], check=True, capture_output=True, timeout=60
            )
            made.replace(path)
    return path


def _agrees(function: _Function, dtype: torch.dtype) -> bool:
    """Whether the kernel gives what torch gives, on a few numbers."""
    lengths, generator = (1, 18, 35), torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, sum(lengths), 2, 24, generator=generator).to(dtype)
    offsets = torch.tensor((0, *lengths)).cumsum(0).int()
    ours = _call(function, (query, key, value), offsets, offsets, None, Rule())
    parts = zip(*(states.float().split(lengths) for states in (query, key, value)), strict=True)
    theirs = [scaled_dot_product_attention(*(part.transpose(0, 1) for part in some)).transpose(0, 1) for some in parts]
    return torch.allclose(ours.float(), torch.cat(theirs), atol=1e-5 if dtype == torch.float32 else 2e-2)
