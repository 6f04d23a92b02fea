#!/bin/sh
# Runs an integration's tests with the oldest versions it allows, in a virtual environment of
# their own that is gone afterwards:
#
#   tools/test_oldest.sh llama-index-readers-autoplay llama-index-core==0.13.0
#
# The first argument is the integration's folder in integrations/, the others are requirements
# for pip. PYTHON names the interpreter to use.
set -eu
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
cd "$(dirname "$0")/.."
name=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    "$@" ".[all]" "./integrations/$name" \
    "pytest>=9" "pytest-asyncio>=1.1" "pytest-timeout>=2.3" "hypothesis>=6.100"
"$folder/bin/python" -m pip list 2>/dev/null | grep -iE "^(langchain|llama|chroma)" || true
# Old releases of LlamaIndex look for word lists on the network that they hold themselves.
core=$(find "$folder" -type d -path '*/site-packages/llama_index/core')
[ -z "$core" ] || export NLTK_DATA="$core"
cd "integrations/$name"
# Old releases warn about what newer packages beside them deprecated since: that is not ours.
"$folder/bin/python" -m pytest -q -o filterwarnings=default tests
