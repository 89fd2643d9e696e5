PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CONFIG ?= jobs/configs/digits.yaml
HOST ?= 127.0.0.1
STORE ?= sqlite:///runs/mlflow.db
WORKERS ?= 2
DATA ?= ../shared/data
PYTEST := $(BIN)/python -m pytest
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
LONG := long or cluster or ui or alone
# pytest exits with 5 where nothing is to run, such as a folder without tests of this kind.
OR_NONE = || [ $$? -eq 5 ]
TWO_AT_ONCE = +$(MAKE) --no-print-directory --jobs 2 .with-ray .without-ray
# The many processes that tests start read compiled modules, also where the environment says to write none.
export PYTHONDONTWRITEBYTECODE =

.PHONY: studies-small .with-ray .without-ray .venv-by-virtualenv .chromium-by-apt .for-cluster .for-ui run test test-fast test-all fuzz test-cluster test-ui coverage screenshots lint format schema ui bench compare clean

run: $(READY)
	$(BIN)/raysim run $(CONFIG) $(ARGS)

# Tests that start a Ray run one by one, since two would fight for the cores; the others, and the cluster test on machines
# of its own, run meanwhile in the time that those leave.
# `make test ARGS=tests/FOLDER` runs a part.
test: $(READY)
	$(TWO_AT_ONCE) KIND="not ($(LONG))"

.with-ray:
	$(PYTEST) -m "ray and ($(KIND))" --durations 10 $(ARGS) $(OR_NONE)

.without-ray:
	nice -n 19 $(PYTEST) -m "not ray and ($(KIND))" $(SIDE_BY_SIDE) --durations 10 $(ARGS) $(OR_NONE)

test-fast: $(READY)
	$(PYTEST) -m "not slow and not ray and not ($(LONG))" $(SIDE_BY_SIDE) $(ARGS)

# What `test` leaves out.
test-all: .for-cluster
	-$(MAKE) --no-print-directory .for-ui
	$(TWO_AT_ONCE) KIND="long or cluster"
	$(PYTEST) -m "alone or ui" $(ARGS) $(OR_NONE)

# Statements of raysim/ that no test of `test` runs, in its own process or in one that it starts.
coverage: $(READY)
	$(BIN)/coverage erase
	$(TWO_AT_ONCE) KIND="not ($(LONG))" PYTEST="$(BIN)/coverage run -m pytest"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Ten times as many inputs of the fuzzer as `test-all` tries, the same ones in every run.
fuzz: $(READY)
	RAYSIM_FUZZ_INPUTS=20000 $(PYTEST) -m long tests/fuzz $(ARGS)

# Needs root, and Debian's openssh-server, rsync and iproute2; the tests are skipped without them, and say why.
test-cluster: .for-cluster
	$(PYTEST) -m cluster $(ARGS)

.for-cluster: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling editables

# Pages in Debian's Chromium: Playwright drives it and brings none of its own. Pictures of the pages go to docs/images.
test-ui: .for-ui
	$(PYTEST) -m ui $(ARGS)

.for-ui: $(READY)
	command -v chromium >/dev/null || $(MAKE) --no-print-directory .chromium-by-apt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ui]'

screenshots: $(READY)
	RAYSIM_PICTURES=docs/images $(MAKE) --no-print-directory test-ui

.chromium-by-apt:
	@test "$$(id -u)" = 0 || { echo "test-ui needs Debian's chromium: apt-get install chromium, as root" >&2; exit 1; }
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium fonts-dejavu-core

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(READY)
	$(BIN)/raysim schema > jobs/configs/schema.json

ui: $(READY)
	$(BIN)/mlflow ui --host $(HOST) --backend-store-uri $(STORE)

bench: $(READY)
	$(BIN)/python jobs/bench_training.py $(ARGS)
	$(BIN)/python jobs/bench_submodel.py $(ARGS)
	for workload in W1 W2 W3 population; do $(BIN)/python jobs/bench_engine.py --workload $$workload || exit 1; done

compare: $(READY)
	$(BIN)/python jobs/compare_methods.py jobs/configs/compare_digits.yaml $(ARGS)

# The core tables of `studies/ca_hfp_small` once more: `make studies-small DATA=FOLDER`, which has cifar10_jpeg.tar.gz.
studies-small: $(READY) data/cifar10_jpeg
	$(BIN)/raysim study studies/ca_hfp_small --cells core,core-batchnorm,half-width,half-width-batchnorm --set executor.kind=ray \
		--results runs/studies-small.jsonl

data/cifar10_jpeg:
	mkdir -p data/.unpacked
	tar -xzf $(DATA)/cifar10_jpeg.tar.gz -C data/.unpacked
	mv data/.unpacked data/cifar10_jpeg

# Where Python comes without its venv module, as on a bare Debian, pip alone has to do.
.venv-by-virtualenv:
	rm -rf .venv .virtualenv
	$(PYTHON) -m pip install --quiet --target .virtualenv virtualenv
	PYTHONPATH=.virtualenv $(PYTHON) -m virtualenv --quiet .venv
	rm -rf .virtualenv

clean:
	rm -rf .venv

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raysim needs Python 3.11 or newer")'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv || $(MAKE) --no-print-directory .venv-by-virtualenv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
