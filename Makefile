# make train | test | long | check | chaos | lint | install | clean | help. Each sets up its own virtual environment first.

# Interpreter that the virtual environment is made from (3.11 or newer), and where it is made.
PYTHON ?= python3
VENV ?= .venv

# Build of torch and fbgemm: cuda where nvidia-smi lists a GPU. Override: make train DEVICE=cpu
DEVICE ?= $(if $(shell nvidia-smi -L 2>/dev/null | grep '^GPU'),cuda,cpu)

# Which of the known triples of torch, torchrec and fbgemm is installed, by its torch
# (cdp_torchrec/known_versions.py): make test TORCH=2.11
TORCH ?= 2.13

# Where the CPU build of torch is asked for: elsewhere plain `torch` is the CUDA build of several
# GB. Where this index cannot be reached, pip's own configuration (find-links, index) decides.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# What make chaos does: another seed draws other faults.
FAULTS ?= 300
SEED ?= 0

BIN := $(VENV)/bin
# -qq: errors only.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
STAMP := $(VENV)/.installed-$(DEVICE)-$(TORCH)
WHEELS := $(VENV)/wheels

# Tests run in a process more than there are cores, because many wait for what they started, and in
# at most 4, because each holds torch. They come in the order of tests/conftest.py, so that files stay
# together and what their tests share is made once, but a process that is done takes from another.
TEST_PROCESSES ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) < 4 ? $$(getconf _NPROCESSORS_ONLN) + 1 : 4 )))
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal

# torch==2.13.0 torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0, or as TORCH and DEVICE say;
# $(call pinned,torch) is the first.
TRIPLE = $(shell $(PYTHON) cdp_torchrec/known_versions.py $(TORCH) $(DEVICE))
pinned = $(filter $(1)==%,$(TRIPLE))

.DEFAULT_GOAL := help
.PHONY: train test long check chaos triton lint install clean help

train: $(STAMP)  ## train the quickstart on 4 ranks
	$(BIN)/torchx run dist.ddp -j 1x4 launch/train.py

test: $(STAMP)  ## run the tests
	$(PYTEST)

long: triton  ## run the tests that take long, and no others
	$(PYTEST) -m slow --durations 10

check: triton  ## run all tests in all combinations
	CDP_WHOLE_MATRIX=1 $(PYTEST) -m '$(if $(filter cpu,$(DEVICE)),not gpu)'

chaos: $(STAMP)  ## do 300 random faults to trainings, data, artifacts and a server
	$(BIN)/python -m tests.chaos --faults $(FAULTS) --seed $(SEED)

# One slow test runs the GPU's kernel in Triton's interpreter. A CUDA build of torch brings its Triton.
triton: $(STAMP)
	@$(PIP) install 'triton>=3.6'

lint: $(STAMP)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --summary=none

install: $(STAMP)  ## install into the virtual environment only

clean:  ## remove the virtual environment and caches
	test ! -e $(VENV)/pyvenv.cfg || rm -rf $(VENV)
	rm -rf build *.egg-info .pytest_cache .ruff_cache

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

$(STAMP): pyproject.toml cdp_torchrec/known_versions.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: $(PYTHON) is missing or older than 3.11: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "error: $(PYTHON) has no venv module: apt-get install python3-venv" >&2; exit 1; }
	@test -n "$(TRIPLE)"
	@echo "Installing torch $(TORCH) for $(DEVICE) into $(VENV) (a few minutes the first time) ..."
# Another device's or triple's build is no starting point: both fbgemm builds write the same package.
	@test -z "$(filter-out $(STAMP),$(wildcard $(VENV)/.installed-*))" || rm -rf $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory install-$(DEVICE)
	@$(BIN)/python -m pip check
	@touch $@

# torchrec's metadata asks for fbgemm-gpu, the CUDA build, on every machine. Its wheel is installed
# with that one line changed, so that exactly one fbgemm is there and pip agrees.
.PHONY: install-cpu install-cuda
install-cpu:
	@$(PIP) install 'wheel>=0.45'
	@$(PIP) install --no-deps --retries 0 --timeout 15 --index-url $(TORCH_CPU_INDEX) \
	    $(call pinned,torch) || \
	    echo "No CPU build of torch at $(TORCH_CPU_INDEX): using pip's own configuration."
	@rm -rf $(WHEELS)
	@$(PIP) download --no-deps --dest $(WHEELS) $(call pinned,torchrec)
	@$(BIN)/wheel unpack --dest $(WHEELS) $(WHEELS)/torchrec-*.whl >/dev/null
	@sed -i 's/^Requires-Dist: fbgemm-gpu$$/Requires-Dist: fbgemm-gpu-cpu/' \
	    $(WHEELS)/torchrec-*/torchrec-*.dist-info/METADATA
	@$(BIN)/wheel pack --build-number 1 --dest-dir $(WHEELS) $(WHEELS)/torchrec-*/ >/dev/null
	@$(PIP) install $(call pinned,torch) $(call pinned,fbgemm-gpu-cpu) $(WHEELS)/torchrec-*-1-*.whl \
	    -e '.[cpu,dev]'
	@rm -rf $(WHEELS)

install-cuda:
	@$(PIP) install $(TRIPLE) -e '.[cuda,dev]'
