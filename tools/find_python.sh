#!/bin/sh
# Prints the path of a Python of the given version, for example 3.12: from PATH, else from pyenv.
for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    "$python" -c '' >/dev/null 2>&1 && { echo "$python"; exit 0; }
done
exit 1
