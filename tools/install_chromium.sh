#!/bin/sh
# Installs a Chromium for `make test-browser`, unless there is one: with apt-get on Debian, elsewhere
# Playwright's own.
#
#   tools/install_chromium.sh PYTHON    a Python with the package playwright
set -eu
python=$1
"$python" "$(dirname "$0")/chromium.py" 2>/dev/null && exit 0
# Elsewhere, Ubuntu for one, the package of this name has no browser in it.
if grep -q '^ID=debian' /etc/os-release 2>/dev/null && [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium && exit 0
fi
exec "$python" -m playwright install --with-deps chromium
