#!/bin/sh
# Runs langchain-autoplay's store against a real PostgreSQL with pgvector, which comes as a
# package (pgserver: Python 3.11 and 3.12) into a virtual environment of its own.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$(for version in 3.11 3.12; do sh tools/find_python.sh "$version" && break; done)}
package=integrations/langchain-autoplay
venv=.venv-postgres
test -x "$venv/bin/python" || "$PYTHON" -m venv "$venv"
pip="$venv/bin/python -m pip --quiet --disable-pip-version-check"
$pip install --upgrade pip
$pip install --editable '.[local]' --editable "$package" --group "$package/pyproject.toml:test" pgserver
# pgserver wants to know where its sockets go, and warns where nothing says it.
"$venv/bin/python" -m pytest -q -W 'ignore:XDG_RUNTIME_DIR' "$package/tests/on_postgres.py" "$@"
