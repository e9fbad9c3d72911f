# Everything from a fresh machine: `make demo`, `make test`. Only Python 3.11 and make are needed.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
INSTALL := install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: setup demo test tests chaos lint types format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip $(INSTALL) -e '.[dev]'
	# Tests compare with its optimizers, which need none of what the rest of it does.
	$(BIN)/python -m pip $(INSTALL) --no-deps timm
	# All cores compile, where pip takes one. Some packages bring templates that are no Python.
	$(BIN)/python -W ignore -m compileall -qq -j 0 .venv/lib src || true
	touch $(READY)

# Compare methods of every family in the simulator and write the report; run one for real and replay
# that run. Without names `compare` takes all methods.
COMPARED := SGD AllReduceSGD CompressedAllReduceSGD PowerSGD \
	BackupSyncSGD StaleSynchronousSGD AsyncSGD DANA \
	DPSGD ADPSGD StochasticGradientPush ChocoSGD \
	LocalSGD SlowMo StreamingDiLoCo NoLoCo

demo: $(READY)
	rm -rf demo
	$(BIN)/offbeat compare $(COMPARED) --config examples/digits.yaml --out demo/comparison
	$(BIN)/offbeat run --method AsyncSGD --optimizer.lr 0.1 --workers 2 --out demo/real --plots
	$(BIN)/offbeat replay demo/real

# With `--jobs 2` lint and tests run side by side.
test: lint tests

tests: $(READY)
	$(BIN)/pytest -ra -n 2 --dist worksteal

# Kill, interrupt and starve real runs, and see that nothing hangs and nothing is left.
chaos: $(READY)
	$(BIN)/python benchmarks/chaos.py --out benchmarks/chaos.json

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo runs build
