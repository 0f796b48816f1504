# make help lists the targets.

MAKEFLAGS += --no-print-directory
CARGO := cargo
PROGRAM := target/release/eplb
CPP_SOURCES := $(wildcard include/*.hpp benches/*.c kernels/*.cu kernels/*.cuh $(addprefix cpp_tests/,*.cpp *.h */*.cpp */*.c */*.h */*.cu) \
	$(addprefix examples/*/,*.c *.cpp *.h */*.cpp */*.h) tests/linking/*.c tests/linking/*.h)
CPP_TESTS_NEED := cmake:cmake g++:g++ libgtest-dev:/usr/include/gtest/gtest.h valgrind:valgrind \
	nlohmann-json3-dev:/usr/include/nlohmann/json.hpp openmpi-bin:mpirun libopenmpi-dev:mpicxx

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SONAME := libeplb.so.$(shell sed -n 's/^\#define EPLB_ABI_VERSION //p' include/eplb.h)

PREFIX ?= /usr/local
LIBDIR ?= lib
TREE = $(DESTDIR)$(PREFIX)
# The files to install. `make dist` passes those that it built for older systems.
SHARED := target/release/libeplb.so
STATIC := build/lib/libeplb.a
# From the folder of the pkg-config file to PREFIX, so that an installed tree may be moved.
UP = $(shell realpath -ms --relative-to=/x/$(LIBDIR)/pkgconfig /x)
FILL = sed -e 's|@VERSION@|$(VERSION)|g' -e 's|@SONAME@|$(SONAME)|g' -e 's|@LIBDIR@|$(LIBDIR)|g' -e 's|@UP@|$(UP)|g'

.PHONY: build demo test build-tests bench bench-peers peers gpu-bundle install install-built dist wheel gates doc header recipes format check clean help

build: ## the library (target/release/libeplb.so, build/lib/libeplb.a) and the program eplb
	@scripts/need.sh gcc:cc
	$(CARGO) build --locked --release --features cli
	scripts/prelink.sh target/release/libeplb.a build/lib/libeplb.a

demo: ## the three steps with a real model on 8 ranks: the engine of examples/moe_engine, against an installed eplb
	@scripts/need.sh cmake:cmake g++:g++ nlohmann-json3-dev:/usr/include/nlohmann/json.hpp
	@$(MAKE) -s install DESTDIR= PREFIX=$(CURDIR)/build/install LIBDIR=lib >/dev/null
	@cmake -S examples/moe_engine -B build/moe_engine -Deplb_DIR=$(CURDIR)/build/install/lib/cmake/eplb -Wno-dev >/dev/null
	@cmake --build build/moe_engine -j 2 >/dev/null
	@examples/moe_engine/demo.sh build/moe_engine build/install/bin/eplb data/tiny-moe build/demo

test: build-tests ## all tests: Rust, then C and C++ also under valgrind, and the example engine on 8 ranks
	$(CARGO) test --locked --features cli
	ctest --test-dir build/cpp_tests -j 4 --output-on-failure

build-tests:
	@scripts/need.sh $(CPP_TESTS_NEED)
	$(CARGO) test --locked --features cli --no-run
	cmake -S cpp_tests -B build/cpp_tests -Wno-dev >/dev/null
	cmake --build build/cpp_tests -j 2

bench: ## the figures of docs/benchmarks.md
	@scripts/need.sh $(CPP_TESTS_NEED)
	$(CARGO) bench --locked --features cli --bench solve --bench generate --bench balance --bench live
	cmake -S cpp_tests -B build/cpp_tests -Wno-dev >/dev/null
	cmake --build build/cpp_tests --target host_bench
	@mkdir -p build/bench
	build/cpp_tests/host_bench build/bench
	"$$(scripts/python.sh)" scripts/bench_reader.py target/tmp/bench-dump
	"$$(scripts/python.sh)" scripts/bench_numpy.py build/bench

peers: build ## loaders, planners and recorders of other systems against eplb's files, both ways; installs 7 GB in build/peers
	scripts/peers.sh $(PROGRAM)

bench-peers: ## the planners of vLLM, SGLang and TokenSpeed beside eplb's, in one run; installs 7 GB in build/peers
	scripts/bench_peers.sh

gpu-bundle: ## build/gpu-bundle: device tests and a benchmark for a machine with only a GPU and its driver; run its run.sh
	scripts/gpu_bundle.sh

install: build ## under $(DESTDIR)$(PREFIX), /usr/local by default: headers, libraries, program, manual, licences, CMake and pkg-config files
	@$(MAKE) install-built

install-built:
	install -d "$(TREE)/include" "$(TREE)/bin" "$(TREE)/share/man/man1" "$(TREE)/share/doc/eplb" \
		"$(TREE)/$(LIBDIR)/pkgconfig" "$(TREE)/$(LIBDIR)/cmake/eplb"
	install -m 644 include/*.h include/*.hpp "$(TREE)/include"
	install -m 755 $(SHARED) "$(TREE)/$(LIBDIR)/$(SONAME)"
	ln -sf $(SONAME) "$(TREE)/$(LIBDIR)/libeplb.so"
	install -m 644 $(STATIC) "$(TREE)/$(LIBDIR)"
	install -m 755 $(PROGRAM) "$(TREE)/bin"
	$(PROGRAM) man "$(TREE)/share/man/man1"
	install -m 644 LICENSE NOTICE packaging/THIRD-PARTY "$(TREE)/share/doc/eplb"
	$(FILL) packaging/eplb.pc.in >"$(TREE)/$(LIBDIR)/pkgconfig/eplb.pc"
	$(FILL) packaging/eplbConfig.cmake.in >"$(TREE)/$(LIBDIR)/cmake/eplb/eplbConfig.cmake"
	$(FILL) packaging/eplbConfigVersion.cmake.in >"$(TREE)/$(LIBDIR)/cmake/eplb/eplbConfigVersion.cmake"

dist: ## build/dist/eplb-VERSION-linux-MACHINE.tar.gz: the installed tree, for glibc 2.17 and newer
	scripts/dist.sh

wheel: ## build/wheel/eplb-*.whl and .tar.gz: the Python package, tested with python3, Python 3.9 and the newest that is found
	scripts/check_wheel.sh --all

doc: ## the documentation of the C interface, in build/doc/html; undocumented items are errors
	@scripts/need.sh doxygen:doxygen
	@mkdir -p build
	doxygen Doxyfile

header: ## include/eplb.h, eplb_tools.h and eplb_live.h, generated from src/ffi
	EPLB_WRITE_HEADER=1 $(CARGO) test --locked --quiet --test header

recipes: ## the code of docs/recipes.md and docs/live.md, from cpp_tests/recipes
	EPLB_WRITE_RECIPES=1 $(CARGO) test --locked --quiet --test recipes

format: ## formats Rust, C and C++ sources
	@scripts/need.sh clang-format:clang-format
	$(CARGO) fmt
	clang-format -i $(CPP_SOURCES)

gates: build doc ## checks of the C interface: languages, symbols, ABI, layouts, sanitizers, linking, the installed tree
	@scripts/need.sh g++:g++ clang:clang cmake:cmake pkg-config:pkg-config strace:strace \
		abigail-tools:abidw libgtest-dev:/usr/include/gtest/gtest.h valgrind:valgrind \
		nlohmann-json3-dev:/usr/include/nlohmann/json.hpp
	scripts/check_header.sh
	scripts/check_symbols.sh
	scripts/check_abi.sh
	$(CARGO) run --locked --quiet --manifest-path abi_tests/Cargo.toml --target-dir target
	scripts/check_install.sh
	scripts/check_static.sh
	cmake -S cpp_tests -B build/sanitize -DEPLB_SANITIZE=ON -Wno-dev >/dev/null
	cmake --build build/sanitize -j 2
	ctest --test-dir build/sanitize -j 4 --output-on-failure

check: ## formatting, lints, documentation and the order of the modules, warnings as errors
	@scripts/need.sh clang-format:clang-format
	$(CARGO) fmt --check
	clang-format --dry-run -Werror $(CPP_SOURCES)
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --features cli -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --lib
	python3 scripts/check_house.py

clean: ## removes all build outputs
	rm -rf build target

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
