#!/bin/sh
# Prints an interpreter of the version given (3.12, say): from PATH or, failing that, from pyenv.
for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    "$python" -c '' >/dev/null 2>&1 && { echo "$python"; exit 0; }
done
exit 1
