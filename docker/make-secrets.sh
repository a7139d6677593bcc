#!/usr/bin/env bash
# Makes the secrets of docker/compose.yaml, once, in docker/secrets/, which nobody else can enter.
set -euo pipefail
folder=$(dirname "$0")/secrets
if [ -e "$folder" ]; then
    echo "error: $folder exists; remove it to make new secrets" >&2
    exit 1
fi
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

umask 077
mkdir "$folder"
key=$(random)
printf '[default]\naws_access_key_id = bit\naws_secret_access_key = %s\n' "$key" >"$folder/aws-credentials"
printf '{"identities": [{"name": "bit", "credentials": [{"accessKey": "bit", "secretKey": "%s"}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}\n' "$key" >"$folder/s3.json"
random >"$folder/ray-token"
random >"$folder/grafana-password"
# The users of the containers read the files themselves; the folder keeps others out.
chmod 644 "$folder"/*
