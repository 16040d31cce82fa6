# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# Set in many containers: each of a grid's processes would compile again all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint proto bench soak proof fuzz wheel clean

demo: $(VENV)/.runtime
	$(BIN)/grid demo

# A module's tests stay together, long ones first: they are in the folders that come first. A third of the time of whole
# grids is waiting, hence one more than there are processors; tests/support/grid.py has ports for four.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --maxprocesses 4 --dist loadscope --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=proto/gen $(BIN)/lint-imports
	$(BIN)/pyright

bench: $(VENV)/.dev
	$(BIN)/python -m bench

# Whether anything grows with the number of jobs: make soak JOBS=1000000
JOBS ?= 20000
soak: $(VENV)/.dev
	$(BIN)/python -m bench soak --jobs $(JOBS)

# What docs/workload.md guarantees, attacked TIMES times as long as `make test` does it; the counts are printed.
TIMES ?= 50
PROOFS = tests/drills/test_failpoints.py tests/drills/test_message_faults.py tests/drills/test_power_loss.py \
  tests/unit/gatekeeper/test_gatekeeper_simulation.py tests/unit/broker/test_broker_machine.py
proof: $(VENV)/.dev
	GRIDFABRIC_PROOF=$(TIMES) $(BIN)/python -m pytest -s --hypothesis-show-statistics $(PROOFS)

# Guided by coverage where atheris has a wheel for this Python: make fuzz FUZZ="--atheris --target crl --seconds 600"
FUZZ ?= --seconds 30
fuzz: $(VENV)/.dev
	-$(PIP) --only-binary=:all: atheris
	PYTHONPATH=.:proto/gen:tests $(BIN)/python -m fuzz $(FUZZ)

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --outdir dist .

# A folder without .venv, or with changed locks, is brought up to date; nothing outside .venv is touched.
$(VENV)/.runtime: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("gridfabric needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --only-binary=:all: -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(PIP) -r requirements-dev.lock
	touch $@

# The generated code is committed; CI checks that it is what these files say.
proto: $(VENV)/.dev
	rm -rf proto/gen && mkdir -p proto/gen
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto/gen --grpc_python_out=proto/gen --pyi_out=proto/gen \
	  $$(find proto/gridfabric -name '*.proto' | sort)

clean:
	rm -rf $(VENV) demo-out dist build bench/out fuzz-out
