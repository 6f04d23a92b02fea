#!/bin/sh
# Makes the secrets that compose.yaml and kubernetes/deployment.yaml use, in the folder `secrets`
# beside this file. Secrets that exist stay as they are.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
for name in admin_key read_key signing_key webhook_secret; do
    test -s "secrets/$name" && continue
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name"
    # Compose mounts the file as it is, and the container's user reads it. Others on this machine
    # cannot: the folder is open to its owner only.
    chmod 444 "secrets/$name"
    echo "made $(pwd)/secrets/$name"
done
