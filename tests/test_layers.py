"""Who may import whom, and what stays unloaded until it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "batchscore"
# layer -> layers it may import from; itself always
BASE = {"types", "errors", "resources"}
ALLOWED = {
    "types": set(),
    "errors": set(),
    "resources": {"errors"},
    "stop": BASE,
    "media": {"types", "errors"},
    "requests": {"types"},
    "models": BASE | {"media"},
    "runners": BASE | {"media", "models"},
    "engine": BASE | {"models", "runners", "stop"},
    "scorer": BASE | {"engine", "media", "models", "runners", "stop"},
    "io": BASE | {"media"},
    "jobs": BASE | {"engine", "evaluation", "io", "media", "models", "requests", "runners", "scorer", "stop"},
    "inspection": BASE | {"media", "models", "runners"},
    "verification": BASE | {"engine", "models", "runners"},
    "evaluation": BASE | {"io"},
    "report": BASE | {"evaluation", "io", "jobs", "media", ""},
    "bench": BASE | {"engine", "runners"},
    "diagnosis": BASE | {"engine", "inspection", "models", "runners", "scorer"},
    "cli": BASE
    | {"bench", "diagnosis", "engine", "evaluation", "inspection", "io", "jobs", "report", "scorer", "stop"}
    | {"verification", ""},
    "": {"evaluation", "io", "jobs", "report", "scorer"},  # batchscore/__init__.py
    "__main__": {"cli"},
}
HEAVY = {
    "torch": {"models", "runners"},
    "transformers": {"models", "runners"},
    "sentence_transformers": {"models"},
    "ir_measures": {"evaluation"},
    "scipy": {"evaluation"},
    "sklearn": {"evaluation"},
    "pyarrow": {"evaluation", "io", "jobs", "report"},
    "matplotlib": {"report"},
    "datasets": {"io"},
    "pydantic": {"requests"},
    "pydantic_core": {"requests"},
    "av": {"media"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            # `from batchscore import x` imports a layer or a name, anything longer a module of its layer
            names = {f"{module}.{name.name}" for name in node.names}
            found |= names if module == "batchscore" else {module}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    layer, layers = layer_of(path), set()
    for name in imports_of(path):
        if name.split(".")[0] == "batchscore":
            part = name.split(".")[1] if "." in name else ""
            layers.add("" if part.startswith("__") else part)

    assert layers - {layer} <= ALLOWED[layer]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_layers(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path)}

    assert [name for name in roots & HEAVY.keys() if layer_of(path) not in HEAVY[name]] == []


def test_every_layer_is_in_the_table() -> None:
    assert {layer_of(path) for path in FILES} == ALLOWED.keys()


def test_what_a_model_means_is_decided_without_torch() -> None:
    """A wrong option or a template with a syntax error is refused before the seconds that torch takes to load."""
    code = (
        "import sys, batchscore.models.open, batchscore.models.text.rendered, batchscore.models.text.templates\n"
        "print(sorted({'torch', 'transformers', 'pyarrow', 'datasets'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout == "[]\n"


COMMANDS = ["score", "rerank", "encode", "run-batch", "status", "merge", "inspect", "verify", "models", "store"]
COMMANDS += ["eval", "report"]
COMMANDS += ["plan", "bench", "doctor"]


@pytest.mark.parametrize("command", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom batchscore.cli.main import app\n"
        f"try:\n    app({command!r}, prog_name='batchscore')\nexcept SystemExit:\n    pass\n"
        "sys.exit(','.join({'torch', 'transformers', 'pyarrow', 'numpy', 'datasets'} & sys.modules.keys()) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert "batchscore" in run.stdout
