#!/usr/bin/env bash
# Lint, format and types; every finding of all three is printed before it fails.
# PYTHON names the interpreter that has ruff and mypy (default: .venv's, else python3).
set -u
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
failed=0
"$PYTHON" -m ruff check . || failed=1
"$PYTHON" -m ruff format --check . || failed=1
"$PYTHON" -m mypy || failed=1
[ "$failed" = 0 ] || echo "error: tools/check.sh found problems; 'make format' mends the formatting" >&2
exit "$failed"
