#!/bin/sh
# Licences, sources and bans of everything that eplb ships: deny.toml. Installs cargo-deny where it is missing.
set -eu
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null; then
    # Unoptimised: it is built in a third of the time and runs for a second.
    cargo install --quiet --locked --debug cargo-deny --version 0.20.2
fi
# What ships; fuzz/ and abi_tests/ never leave this tree.
cargo deny --locked check bans licenses sources
