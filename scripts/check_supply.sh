#!/bin/sh
# Licences, sources and bans of everything eplb is built from: deny.toml. Installs cargo-deny where it is missing.
set -eu
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null; then
    # Unoptimised: it is built in a third of the time and runs for a second.
    cargo install --quiet --locked --debug cargo-deny --version 0.20.2
fi
for manifest in Cargo.toml fuzz/Cargo.toml abi_tests/Cargo.toml; do
    cargo deny --locked --manifest-path "$manifest" check --config "$PWD/deny.toml" bans licenses sources
done
