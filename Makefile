# make repro   the whole pipeline              make test    the linter and all tests
# make setup   only the environment            make quick   the linter and the fast tests
# make repro JOBS=4   four stages at a time instead of two; JOBS=1: one, by `dvc repro` alone
# make readme  the README's tables and figure, from reports/
# make bench   speed of quantized models with the shapes of real ones; about 20 minutes
# make cluster Ray, to run stages on more machines (quant/cluster/README.md)
# make cluster-acceptance   runs the acceptance tests of several machines, on nodes of this one, and prints their table
# make peers   the environment of other projects' quantizers; make peers-report compares them with this project's rows
# make fuzz   a million mutated inputs of seventeen kinds, none of which may do more than be refused in a line; ten minutes
# make torture   kills the pipeline fifty times and compares what the same command then makes; an hour
# make lock   writes the locks of quant/supply/ anew from requirements.txt and tests/requirements.txt, with the hashes of the index
# make licences   the licence of every distribution that is installed
# make clean   remove everything that can be rebuilt

JOBS := 2
VENV := .venv
ACTIVE := . $(VENV)/bin/activate &&
# Every file that it installs has a hash in quant/supply/; what has no wheel is built by the setuptools of quant/supply/build.lock
LOCKED := pip install --quiet --require-hashes --no-deps --no-build-isolation
export DVC_NO_ANALYTICS := true
# In a locale without UTF-8 DVC can't run in a folder such as ü
export PYTHONUTF8 := 1
# What PYTEST runs: two processes, one test file at a time each, the longest files first (tests/conftest.py)
PYTEST := python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# What `make clean` removes: these folders, and what git ignores in models, data and reports
IGNORED := git ls-files --others --ignored --exclude-standard --directory models data reports
MADE := ls -d $(VENV) .dvc/cache .dvc/tmp 2>/dev/null; $(IGNORED)

.PHONY: help repro test quick setup clean lint readme bench cluster cluster-acceptance peers peers-report torture fuzz lock licences

help:
	@sed -n 's/^# make/make/p' Makefile

repro: setup
	$(ACTIVE) python -m quant.recover && python -m quant.retry
	$(ACTIVE) $(if $(filter 1,$(JOBS)),dvc repro,python -m quant.jobs $(JOBS))

test: setup lint
	$(ACTIVE) $(PYTEST)

quick: setup lint
	$(ACTIVE) $(PYTEST) -m "not slow"

bench: setup
	$(ACTIVE) python -m quant.benches.decode

peers: .venv-peers/ready

peers-report: setup peers
	$(ACTIVE) python -m quant.benches.peers --write reports/quantizers.json

.venv-peers/ready: quant/methods/peers/requirements.txt
	@test -x .venv-peers/bin/pip || python3 -m venv .venv-peers
	.venv-peers/bin/pip install --quiet "setuptools>=77" wheel ninja torch==2.13.0
	.venv-peers/bin/pip install --quiet --no-build-isolation --requirement $<
	@touch $@

fuzz: setup $(VENV)/ready-to-test
	$(ACTIVE) FUZZ_CASES=60000 python -m pytest --numprocesses 2 --no-loadscope-reorder tests/test_fuzz.py

torture: setup $(VENV)/ready-to-test
	$(ACTIVE) python tests/torture.py

readme: setup
	$(ACTIVE) python -m quant.report.readme

lint: setup $(VENV)/ready-to-test
	$(ACTIVE) ruff check

lock: setup
	@test -x .venv-lock/bin/pip || python3 -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv==0.13.9
	$(ACTIVE) python -m quant.supply.locks .venv-lock/bin/uv

licences: setup
	$(ACTIVE) python -m quant.supply.licences

cluster: setup
	$(ACTIVE) pip install --quiet --requirement quant/cluster/requirements.txt

cluster-acceptance: cluster $(VENV)/ready-to-test
	$(ACTIVE) python tests/cluster_acceptance.py

setup: $(VENV)/ready

$(VENV)/ready: quant/supply/build.lock quant/supply/cpu.lock quant/supply/pipeline.lock quant/supply/cuda.lock pyproject.toml quant/methods/llama_cpp/setup.py
	@test -x $(VENV)/bin/pip || python3 -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: python3 can't make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(ACTIVE) python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed")'
	$(ACTIVE) $(LOCKED) --requirement quant/supply/build.lock
	@$(ACTIVE) $(LOCKED) --requirement quant/supply/cpu.lock 2>/dev/null || true  # torch for the CPU alone, where the index has it
	$(ACTIVE) $(LOCKED) --requirement quant/supply/pipeline.lock
	$(ACTIVE) { ! pip check | grep -q '^torch .* is not installed' || $(LOCKED) --requirement quant/supply/cuda.lock; }  # a CUDA build
	$(ACTIVE) pip install --quiet --no-deps --no-build-isolation --editable .
	$(ACTIVE) python -m quant.methods.llama_cpp.setup
	$(ACTIVE) python -c 'import quant.calibration.columns, quant.kernels.attention, quant.kernels.cpu, quant.kernels.norm'  # compiled once, and kept
	@touch $@

$(VENV)/ready-to-test: quant/supply/tests.lock $(VENV)/ready
	$(ACTIVE) $(LOCKED) --requirement quant/supply/tests.lock
	@touch $@

clean:
	@made=$$($(MADE)); test -n "$$made" || { echo "nothing to remove"; exit 0; }; \
	  echo "This removes the virtual environment, DVC's cache with the results of earlier runs, and what dvc repro makes:"; \
	  du -shc $$made; printf "Continue? [y/N] "; read answer; \
	  test "$$answer" = y || { echo "nothing was removed"; exit 1; }; \
	  rm -rf $$made
