PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CONFIG ?= jobs/configs/digits.yaml
HOST ?= 127.0.0.1
STORE ?= sqlite:///runs/mlflow.db

.PHONY: .venv-by-virtualenv .chromium-by-apt run test test-fast test-cluster test-ui screenshots lint format schema ui bench compare clean

run: $(READY)
	$(BIN)/raysim run $(CONFIG) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow and not ray" $(ARGS)

# Needs root, and Debian's openssh-server, rsync and iproute2; says what is missing and skips without them.
test-cluster: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling editables
	$(BIN)/python -m pytest -m cluster $(ARGS)

# Pages in Debian's Chromium: Playwright drives it and brings none of its own. Pictures of the pages go to docs/images.
test-ui: $(READY)
	command -v chromium >/dev/null || $(MAKE) --no-print-directory .chromium-by-apt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ui]'
	$(BIN)/python -m pytest -m ui $(ARGS)

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
