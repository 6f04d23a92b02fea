#!/bin/sh
# Tests langchain-autoplay's store against a real PostgreSQL with pgvector. The server is the package
# pgserver (Python 3.11 and 3.12), installed in its own virtual environment.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$(for version in 3.11 3.12; do sh tools/find_python.sh "$version" && break; done)}
package=integrations/langchain-autoplay
venv=.venv-postgres
test -x "$venv/bin/python" || "$PYTHON" -m venv "$venv"
pip="$venv/bin/python -m pip --quiet --disable-pip-version-check"
$pip install --upgrade pip
$pip install --editable '.[local]' --editable "$package" --group "$package/pyproject.toml:test" pgserver
# pgserver takes the folder of its sockets from XDG_RUNTIME_DIR, and warns if that is not set.
"$venv/bin/python" -m pytest -q -W 'ignore:XDG_RUNTIME_DIR' "$package/tests/on_postgres.py" "$@"
