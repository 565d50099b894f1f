#!/usr/bin/env bash
# Everything that only a GPU can show, in one command and without an install: see benchmarks/gpu.py.
#
# What the machine's Python lacks may lie in WHEELS=folder, filled where there is a network, for Python 3.12 by
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --dest folder pyarrow typer rich pyyaml jinja2 pillow
# and is unpacked into a folder that goes when the script ends.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
export BATCHSCORE_KERNELS=off # the yardstick of scores is torch on a CPU
python=${PYTHON:-python3}
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$unpacked" "$WHEELS"/*.whl
  PYTHONPATH="$PYTHONPATH:$unpacked"
fi
"$python" - <<'END_OF_CHECK'
from importlib.util import find_spec

needed = "torch transformers tokenizers safetensors huggingface_hub numpy pyarrow PIL typer rich yaml jinja2 typing_extensions"
missing = [name for name in needed.split() if find_spec(name) is None]
if missing:
    raise SystemExit(f"gpu.sh: this Python lacks {', '.join(missing)}; PYTHON=... names another, WHEELS=... what to add")
END_OF_CHECK
"$python" benchmarks/gpu.py "$@"
