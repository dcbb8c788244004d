#!/usr/bin/env bash
# Create the virtual environment $1 (default .venv) and install torch, this package with its
# development tools, and Detectron2 into it. PYTHON chooses the interpreter; a TORCH that is set
# replaces the pinned pair, e.g. TORCH="torch==2.4.1 torchvision==0.19.1".
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
# The pair that PyPI has for every one of Python 3.10 to 3.13; it runs on CPU and on CUDA GPUs.
torch=${TORCH:-torch==2.14.1 torchvision==0.29.1}

say() { echo "[install] $*"; }
fail() {
    echo "error: $*" >&2
    exit 2
}

suitable() { # whether the command $1 runs a Python that this project supports, with venv
    local check='import sys, venv, ensurepip; print((3, 10) <= sys.version_info[:2] <= (3, 13))'
    [ "$("$1" -c "$check" 2>/dev/null)" = True ]
}

find_python() { # the newest suitable one on PATH
    local name
    for name in python3.13 python3.12 python3.11 python3.10 python3 python; do
        if suitable "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.10 to 3.13 (with its venv module) on PATH; install one or name it: PYTHON=..."
}

quiet() { # run a command, its output kept back unless it fails
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        fail "failed: $*"
    fi
    rm -f "$log"
}

if ! suitable "$venv/bin/python"; then
    python=${PYTHON:-$(find_python)}
    suitable "$python" || fail "PYTHON=$python is not a Python 3.10 to 3.13 with its venv module"
    say "creating $venv with $("$python" --version) ($python)"
    rm -rf "$venv"
    quiet "$python" -m venv "$venv"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
started=$SECONDS
say "installing $torch (several GB, the longest step)"
# shellcheck disable=SC2086
quiet "${pip[@]}" install $torch
say "installing panoptic_ext and its development tools"
# As a path: a script beside the clone finds the package, not the clone's folder of its name.
quiet "${pip[@]}" install -e ".[dev,docs]" --config-settings editable_mode=compat
say "installing Detectron2"
"$venv/bin/python" tools/install_detectron2.py
say "done in $((SECONDS - started)) s"
