#!/usr/bin/env bash
# Everything that only a GPU can show, in one command and without an install: see benchmarks/gpu.py.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
python=${PYTHON:-python3}
"$python" - <<'END'
from importlib.util import find_spec

needed = "torch transformers tokenizers safetensors huggingface_hub numpy pyarrow typer rich yaml jinja2 typing_extensions"
missing = [name for name in needed.split() if find_spec(name) is None]
if missing:
    raise SystemExit(f"gpu.sh: this Python lacks {', '.join(missing)}; PYTHON=... names another")
END
exec "$python" benchmarks/gpu.py "$@"
