# Everything sets itself up: `make test` on a clean clone is enough.
#
#   make test [PYTHON=python3.12 VENV=.venv-3.12] [ARGS="-k name -x"]
#   make build       the C parts, into ipython_isolation/ (incremental, a few seconds: they are linked as a whole)
#
# Python files need no build: the install is editable.

PYTHON ?= python3
VENV ?= .venv
# More arguments for pytest, or for the script of bench, soak, fuzz, transparency.
ARGS ?=
# Arguments of pytest-xdist: a worker for each processor. PARALLEL= runs all tests in one process (-s, --pdb).
PARALLEL ?= -n auto
# WERROR=1: warnings are errors (c-tests). SANITIZE=address,undefined: sanitizers (build and c-tests).
WERROR ?=
SANITIZE ?=

BIN := $(VENV)/bin
BUILD := build/$(patsubst .%,%,$(notdir $(VENV)))
comma := ,

.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
.PHONY: setup build c-tests victims test test-zmq test-asan test-all-pythons test-jupyter-versions test-torch browser demo deaths bench bench-check profile soak fuzz \
	numpy-suite transparency transparency-report transparency-check format format-check werror wheel clean

# ---- set-up and build ----------------------------------------------------------------------------

# One stamp per PYTHON, so that another PYTHON for the same VENV is noticed.
SETUP := $(VENV)/.setup-$(subst /,_,$(PYTHON))
INSTALL := $(VENV)/.install

setup: $(SETUP)
$(SETUP): pyproject.toml tools/setup.sh
	@PYTHON='$(PYTHON)' VENV='$(VENV)' tools/setup.sh
	@touch $@

# Configures $(BUILD), builds, installs the metadata and the kernelspec; `build` then is only ninja.
$(INSTALL): $(SETUP) pyproject.toml CMakeLists.txt $(wildcard kernelspec/*)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps \
		--force-reinstall --editable . -Cbuild-dir=$(BUILD) \
		$(if $(SANITIZE),-Ccmake.define.IPYTHON_ISOLATION_SANITIZE='$(subst $(comma),;,$(SANITIZE))')
	@touch $@

build: $(INSTALL)
	@cmake --build $(BUILD)

# ---- C tests: one program per tests/c/test_*.c, with the C files that know no Python ---------------

C_PLAIN := $(wildcard $(addprefix ext/,wire.c table.c channel.c channel_open.c channel_extents.c channel_frame.c channel_wait.c lane.c extents.c extents_in.c bigcopy.c arena.c shelf.c pages.c fdpass.c process.c announce.c recorder.c fdfloor.c freeze.c fitness.c notice.c stack.c zmq_late.c))
C_TESTS := $(patsubst tests/c/%.c,build/c-tests/%,$(wildcard tests/c/test_*.c))
C_FLAGS := -std=gnu11 -O1 -g -fno-omit-frame-pointer -Wall -Wextra $(if $(WERROR),-Werror) \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all)

c-tests: $(SETUP) $(C_TESTS) build/c-tests/_supervisor
build/c-tests/_supervisor: ext/supervisor.c ext/fdpass.c $(wildcard ext/*.h) build/c-tests/.flags | $(SETUP)
	gcc $(C_FLAGS) -Iext -o $@ $< -pthread
# Not a prerequisite that is ever up to date by accident: other flags build again.
build/c-tests/.flags: FORCE
	@mkdir -p $(@D)
	@echo '$(C_FLAGS)' | cmp -s - $@ || echo '$(C_FLAGS)' > $@
FORCE:
build/c-tests/%: tests/c/%.c $(C_PLAIN) $(wildcard ext/*.h ext/*.def tests/c/*.h) build/c-tests/.flags \
		| $(SETUP)
	gcc $(C_FLAGS) -Iext -o $@ $< $(C_PLAIN) $(if $(SANITIZE),tools/sanitizer_fork.c) $$(pkg-config --cflags --libs libzmq) -pthread -ldl

# ---- tests ---------------------------------------------------------------------------------------

victims: build
	@if [ -e tests/victims/build.sh ]; then bash tests/victims/build.sh "$(abspath $(BIN)/python)"; fi

test: build c-tests victims
	$(BIN)/python -m pytest tests $(PARALLEL) $(ARGS)

# The same with all frames over ZeroMQ, but where the shared memory itself is what is tested.
test-zmq:
	@IPYTHON_ISOLATION_TRANSPORT=zmq $(MAKE) --no-print-directory test

# With the address and undefined-behaviour sanitizers, in a copy of the tree with a venv of its own.
test-asan:
	@PYTHON='$(PYTHON)' MAKE='$(MAKE)' PARALLEL='$(PARALLEL)' tools/test-asan.sh $(ARGS)

# On every CPython 3.11 to 3.13 of this machine.
test-all-pythons:
	@MAKE='$(MAKE)' tools/test-all-pythons.sh ARGS='$(ARGS)'

# In venvs with ipykernel 6 and IPython 8, and with ipykernel 7 and IPython 9: what runs in real kernels.
test-jupyter-versions: $(SETUP)
	@PYTHON='$(PYTHON)' tools/test-jupyter-versions.sh $(ARGS)

# Tensors, in a venv of its own: torch from PyPI brings some four gigabytes along.
test-torch:
	@$(MAKE) --no-print-directory VENV=.venv-torch build victims
	@.venv-torch/bin/python -m pip install -qq --disable-pip-version-check torch
	.venv-torch/bin/python -m pytest tests/torch $(ARGS)

# In a JupyterLab in a headless Chromium. ARGS=--screenshots writes docs/images/*.png instead.
# Each test opens a page and starts a kernel, hence longer limits.
browser: victims
	@VENV='$(VENV)' tools/setup-browser.sh
	$(BIN)/python -m pytest tests/browser -o timeout=240 -o faulthandler_timeout=300 $(ARGS)

# ---- the rest ------------------------------------------------------------------------------------

demo: build victims
	$(BIN)/python docs/run_demo.py $(ARGS)

bench soak fuzz: build victims
	$(BIN)/python tests/$@/run.py $(ARGS)

# Where the time of one operation goes. ARGS=--docs writes docs/profile.md.
profile: build
	$(BIN)/python tests/bench/hot_path.py $(ARGS)

# Ratios between figures of one run, and fails where one is above its bound (tests/bench/bounds.py).
bench-check: build
	$(BIN)/python tests/bench/check.py $(ARGS)

# Every way of dying, and what the session is told: writes docs/deaths.md.
deaths: build victims
	$(BIN)/python tests/deaths/report.py

# CPython's own tests with the module under test isolated, on every CPython that is there; writes
# docs/transparency.md. transparency-check: on PYTHON alone, and fails where the score falls.
transparency:
	@MAKE='$(MAKE)' tools/test-all-pythons.sh TARGET=transparency-report ARGS='--docs $(ARGS)'
transparency-report: build
	$(BIN)/python tests/transparency/report.py $(ARGS)
transparency-check: build
	$(BIN)/python tests/transparency/report.py --check $(ARGS)

# NumPy's own tests with numpy isolated; some 15 minutes. ARGS: files, --show, -k ...
numpy-suite: build
	$(BIN)/python tests/libraries/numpy_suite.py $(ARGS)

C_ALL = $(shell find ext tests tools -name '*.[ch]' -not -path '*/build/*' | sort)
format: $(SETUP)
	@$(if $(C_ALL),$(BIN)/clang-format -i $(C_ALL))
format-check: $(SETUP)
	@$(if $(C_ALL),$(BIN)/clang-format --dry-run -Werror $(C_ALL))
	@echo "format-check: $(words $(C_ALL)) files"

# The C parts and the C tests once more, with warnings as errors; nothing else uses the results.
werror: $(SETUP)
	@cmake -S . -B build/werror -G Ninja -Wno-dev -DIPYTHON_ISOLATION_WERROR=ON \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) > /dev/null
	@cmake --build build/werror
	@$(MAKE) --no-print-directory c-tests WERROR=1

# What a user installs: dist/*.whl.
wheel: $(SETUP)
	@$(BIN)/python -m pip wheel -qq --disable-pip-version-check --no-build-isolation --no-deps \
		-w dist -Cbuild-dir=build/wheel .
	@ls -l dist

# Also removes the virtual environments' stamps, so that the next build installs afresh.
clean:
	rm -rf build dist ipython_isolation/*.so ipython_isolation/_supervisor ipython_isolation/_symbolize .pytest_cache
	rm -f .venv*/.install .venv*/.setup-*
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
	@if [ -e tests/victims ]; then find tests/victims -name '*.so' -delete; fi
