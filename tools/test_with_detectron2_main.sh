#!/usr/bin/env bash
# Run the quick tests against a checkout of Detectron2 main, in a virtual environment of its own.
# The checkout is copied before anything is built, and stays as it is.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: tools/test_with_detectron2_main.sh [options] CHECKOUT [-- PYTEST_ARGS]

  CHECKOUT            folder of a clone of github.com/facebookresearch/detectron2
  --base PYTHON       use torch and all other packages of this Python's environment (default:
                      .venv/bin/python where it is there; else they are installed, several GB)
  --operators WHICH   yes: compile Detectron2's operators, for the CPU (takes minutes);
                      no: its Python files alone; auto (default): yes where there is a C++ compiler
  --env FOLDER        the environment to make or to use again (default: below build/)
  PYTEST_ARGS         instead of: -m "not slow"

MAX_JOBS is the number of compilers that run at once (default 2), WORKERS of test processes (2).
USAGE
}

say() { echo "[main] $*"; }
fail() {
    echo "error: $*" >&2
    exit 2
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

base='' operators=auto env='' checkout=''
while [ $# -gt 0 ]; do
    case $1 in
        --base | --operators | --env)
            [ $# -gt 1 ] || fail "$1 needs a value (--help lists the options)"
            declare "${1#--}=$2"
            shift
            ;;
        -h | --help) usage && exit ;;
        --) shift && break ;;
        -*) fail "unknown option $1 (--help lists the options)" ;;
        *)
            [ -z "$checkout" ] || fail "two checkouts given: $checkout and $1"
            checkout=$1
            ;;
    esac
    shift
done
[ -n "$checkout" ] || { usage >&2 && exit 2; }
[ -f "$checkout/detectron2/__init__.py" ] && [ -f "$checkout/setup.py" ] ||
    fail "$checkout is not a checkout of Detectron2: it has no detectron2/__init__.py and setup.py"
checkout=$(cd "$checkout" && pwd)
# Paths that the user gave are relative to where the command was typed.
[ -z "$env" ] || { mkdir -p "$env" && env=$(cd "$env" && pwd); }
case $base in */*) base=$(cd "$(dirname "$base")" && pwd)/$(basename "$base") ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
[ -n "$base" ] || [ ! -x .venv/bin/python ] || base=$root/.venv/bin/python
case $operators in
    auto) operators=no && ! command -v "${CXX:-c++}" >/dev/null || operators=yes ;;
    yes | no) ;;
    *) fail "--operators $operators, expected yes, no or auto" ;;
esac
[ -n "$env" ] || env=$root/build/detectron2-main-operators-$operators
python=$env/bin/python

new_environment() { # at $env, on top of the packages of $base
    local packages
    rm -rf "$env"
    if [ -z "$base" ]; then
        PYTHON=${PYTHON:-} tools/install.sh "$env"
        quiet "$python" -m pip uninstall --yes detectron2
        return
    fi
    say "creating $env on top of $base"
    quiet "$base" -m venv "$env"
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # This environment's own packages come first on sys.path, so that its Detectron2 hides the
    # base's. A path file of the base (an editable install) is not read through this one.
    "$base" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$packages/base.pth"
}

# Those that a new environment brings are too old in some versions of Python. Detectron2's model_zoo
# imports pkg_resources, which newer setuptools lacks.
build_tools() {
    quiet "$python" -m pip install --disable-pip-version-check --no-input "setuptools>=77,<81" ninja
}

commit=$(git -C "$checkout" log -1 --format='%h of %cs' 2>/dev/null || echo "no commit")
changed=$(git -C "$checkout" status --porcelain --untracked-files=no 2>/dev/null || echo unknown)
wanted="$commit, operators: $operators, base: $base"

install_checkout() { # a copy of it: its setup.py writes into its own folder
    local copy
    copy=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$copy'" EXIT
    tar -C "$checkout" --exclude=.git --exclude=build --exclude='*.so' -cf - . | tar -C "$copy" -xf -
    if [ "$operators" = no ]; then
        grep -q 'ext_modules=get_extensions()' "$copy/setup.py" ||
            fail "the setup.py of $checkout builds its operators in a way that is not known here"
        sed -i.orig 's/ext_modules=get_extensions()/ext_modules=[]/' "$copy/setup.py"
    fi
    say "installing Detectron2 $wanted"
    # No GPU in sight and FORCE_CUDA 0: the operators are compiled for the CPU alone.
    CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0 MAX_JOBS=${MAX_JOBS:-2} quiet "$python" -m pip install \
        --disable-pip-version-check --no-input --no-deps --no-build-isolation --force-reinstall \
        "$copy"
}

if [ "$(cat "$env/installed" 2>/dev/null)" != "$wanted" ] || [ -n "$changed" ]; then
    new_environment
    build_tools
    install_checkout
    echo "$wanted" >"$env/installed"
fi

export PYTHONPATH=$root OMP_NUM_THREADS=1
"$python" - <<'PYTHON' || fail "another Detectron2 than the one in $env is imported"
import sys, detectron2, torch
try:
    from detectron2 import _C
    operators = "operators compiled"
except ImportError:
    operators = "Python files alone"
print(f"[main] Detectron2 from {detectron2.__path__[0]}, {operators}; torch {torch.__version__}")
sys.exit(not detectron2.__path__[0].startswith(sys.prefix))
PYTHON

[ $# -gt 0 ] || set -- -m "not slow"
say "pytest $*"
log=$(mktemp)
status=0
"$python" -m pytest -n "${WORKERS:-2}" --dist loadfile -q "$@" 2>&1 | tee "$log" || status=$?
say "Detectron2 main $commit, operators $operators: $(grep -E '^[0-9]+ [a-z]+.* in |^=+ .* in ' "$log" | tail -n 1)"
rm -f "$log"
exit "$status"
