#!/bin/sh
# Runs an integration's tests with other versions than the pinned ones, in a virtual environment
# that is deleted afterwards:
#
#   tools/test_versions.sh langchain-autoplay                          the newest allowed
#   tools/test_versions.sh langchain-autoplay langchain-core==1.2.0    the given versions
#
# PYTHON is the interpreter to use.
set -eu
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
cd "$(dirname "$0")/.."
name=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
python=$folder/bin/python
$python -m pip install --quiet --disable-pip-version-check --upgrade pip
$python -m pip install --quiet --editable ".[all]" --editable "integrations/$name" \
    --group "integrations/$name/pyproject.toml:test" "$@"
echo "-- $name with"
$python -m pip list --format=freeze 2>/dev/null | grep -E "^(langchain|langgraph|llama-index)" || true
if [ $# -gt 0 ]; then
    # Old releases of LlamaIndex look on the network for word lists that they contain.
    core=$(find "$folder" -type d -path '*/site-packages/llama_index/core')
    [ -z "$core" ] || export NLTK_DATA="$core"
    # They warn about deprecations in newer packages; these are not ours to fix.
    set -- -o filterwarnings=default
fi
$python -m pytest -q "$@" "integrations/$name/tests"
