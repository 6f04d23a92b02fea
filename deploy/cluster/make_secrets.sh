#!/bin/sh
# Makes the secrets of compose.yaml and kubernetes/, in the folder `secrets` beside this file. Secrets
# that exist stay as they are. For a database of your own, write its addresses into postgres_dsn and
# migrate_dsn before you start.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
for name in admin_key read_key signing_key webhook_secret postgres_password; do
    test -s "secrets/$name" && continue
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name"
done
# One role for both. With two, the one in postgres_dsn needs only what `migrate --grant` gives it.
for name in postgres_dsn migrate_dsn; do
    test -s "secrets/$name" && continue
    printf 'postgresql://autoplay:%s@postgres:5432/autoplay' "$(cat secrets/postgres_password)" \
        > "secrets/$name"
done
# Compose mounts the files as they are, and the container's user reads them. Others on this machine
# cannot: the folder is open to its owner only.
chmod 444 secrets/*
echo "secrets are in $(pwd)/secrets"
