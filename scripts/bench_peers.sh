#!/bin/sh
# Times the planners of vLLM, SGLang and TokenSpeed beside eplb's, and beside its Python package: bench_peers.sh. EPLB_EXTRA_DATA, a folder with more `dumps`, adds
# DeepSeek-V3's decode load. Writes to build/peers: scripts/peers_packages.sh and a crate from crates.io.
set -eu
cd "$(dirname "$0")/.."
versions=$(scripts/peers_packages.sh)

# Only the crate's planner is compiled: its dependencies are an engine's.
crate=tokenspeed-control-0.1.0
if [ ! -d build/peers/$crate ]; then
    curl -fsSL https://static.crates.io/crates/tokenspeed-control/$crate.crate | tar xz -C build/peers
fi
cargo build --quiet --locked --release --manifest-path benches/peers/Cargo.toml --target-dir target/bench-peers
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD/build/peers/packages build/peers/venv/bin/python scripts/bench_peers.py \
    target/bench-peers/release/eplb-bench-peers ${EPLB_EXTRA_DATA:+"$EPLB_EXTRA_DATA/dumps/dsv3-decode"}
scripts/wheel.sh >/dev/null
build/peers/venv/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps build/wheel/eplb-*.whl cffi==2.0.0
echo
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD/build/peers/packages build/peers/venv/bin/python scripts/bench_wheel.py \
    ${EPLB_EXTRA_DATA:+"$EPLB_EXTRA_DATA/dumps/dsv3-decode"}
echo "
on $(date +%F) with $versions $crate"
