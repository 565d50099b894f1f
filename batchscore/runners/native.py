"""Our own functions for CPUs (kernels.cpp), built on first use where a C++ compiler is.

torch's attention takes what is left of a vector one element at a time, so that odd lengths cost twice as much, and it
needs a call for each length; its norms read their input several times. The library is kept in the user's cache folder
under a name that says what it was made of: the source, the compiler and the instructions of the CPU. Where there is no
compiler, torch's are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

VECTOR = 16  # numbers; rows of norms and of eight bits are whole vectors of the widest kind
SWITCH = "BATCHSCORE_KERNELS"  # "off" in the environment: a body runs on a CPU as transformers and torch have it
_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = (
    "-std=c++2a -O3 -shared -fPIC -fno-math-errno -fno-trapping-math"  # by its old name, which older compilers know too
)
_INSTRUCTIONS = {"AVX2": "-mavx2 -mfma", "AVX512": "-mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl"}
_BFLOAT16 = "-mavx512bf16"
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

Function = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Kernels:
    """How the library came about, and its functions by the dtype that they take."""

    reason: str
    attend: Mapping[torch.dtype, Function] = field(default_factory=dict)
    normalize: Mapping[torch.dtype, Function] = field(default_factory=dict)
    quantize_rows: Mapping[torch.dtype, Function] = field(default_factory=dict)
    rescale_rows: Mapping[torch.dtype, Function] = field(default_factory=dict)


def are_off() -> bool:
    """Whether the environment says so."""
    return os.environ.get(SWITCH) == "off"


@lru_cache(1)
def kernels() -> Kernels:
    """Those of this machine, built if they have to be; none of them with the reason."""
    if are_off():
        return Kernels(f"{SWITCH}=off")
    try:
        compiler = _compiler()
        library = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        return Kernels(f"none: {error}")
    names = "attend", "normalize", "quantize_rows", "rescale_rows"
    return Kernels(f"built by {compiler}", *(_functions(library, name) for name in names))


def kernels_folder() -> Path:
    """Where the library is kept; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchscore"


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers begin; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _functions(library: ctypes.CDLL, name: str) -> dict[torch.dtype, Function]:
    names = {dtype: f"{name}_{suffix}" for dtype, suffix in _DTYPES.items()}
    return {dtype: getattr(library, name) for dtype, name in names.items() if hasattr(library, name)}


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
    folder = kernels_folder()
    path = folder / f"kernels-{made_of.hexdigest()[:16]}.so"
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
