#!/bin/sh
# Runs langchain-autoplay's tests with the oldest and with the newest versions that its
# metadata allows, each in a virtual environment of its own.
#   PYTHON=python3.12 sh tools/test_langchain_versions.sh [oldest|newest]
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$(for version in 3.11 3.12 3.13; do sh tools/find_python.sh "$version" && break; done)}
package=integrations/langchain-autoplay
# langgraph's parts ask more of langchain-core and of each other than their metadata says: these
# came out together.
OLDEST='langchain-core==1.2.0 langchain==1.1.0
    langgraph==1.0.4 langgraph-prebuilt==1.0.5 langgraph-checkpoint==3.0.1'

try() {
    name=$1
    shift
    venv=.venv-langchain-$name
    echo "-- $name: $PYTHON, $venv"
    test -x "$venv/bin/python" || "$PYTHON" -m venv "$venv"
    pip="$venv/bin/python -m pip --quiet --disable-pip-version-check"
    $pip install --upgrade pip
    $pip install --upgrade --editable '.[local,chroma,devserver]' --editable "$package[middleware]" \
        --group "$package/pyproject.toml:test" "$@"
    $pip list 2>/dev/null | grep -E '^(langchain|langgraph)' || true
    $venv/bin/python -m pytest -q "$package/tests"
}

# OLDEST is several words: no quotes.
case ${1:-both} in
    oldest) try oldest $OLDEST ;;
    newest) try newest ;;
    *) try oldest $OLDEST && try newest ;;
esac
