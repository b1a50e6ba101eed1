# Two commands do everything, set-up included: `make demo` and `make test`.
# Only python3 with pip and venv is assumed; both are quick the second time.

PYTHON ?= python3
DEVICE ?= cuda
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
FLOOR  := .venv-floor/bin
# The pins are for Python 3.11 and later; 3.10 takes the newest that it can have within the ranges of pyproject.toml.
PINS   := $(shell $(PYTHON) -c "import sys; print('-c constraints.txt' if sys.version_info >= (3, 11) else '')")
# Paths of the four packages. Without them a Python that is started beside a checkout called mtlcore would take the folder
# for the package: an editable install is found after what lies in the working directory.
ROOMS  := '$(CURDIR)' '$(CURDIR)/plugins' '$(CURDIR)/verification' '$(CURDIR)/benchmarks'
# One thread per process: the work is many small steps, and the processes run side by side.
export OMP_NUM_THREADS ?= 1
# Many tests and runs start processes of their own: what they compile is kept.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-nightly test-floor test-device check format bench-speed bench-systems verify verify-nightly docs site wheel clean

demo: $(READY)  ## verify the methods, train them on real images, write the report
	$(BIN)/mtl bench run demo --out out/demo --jobs 2
	$(BIN)/mtl bench report out/demo

test: $(READY)  ## the fast tests
	$(BIN)/python -m pytest -n 2

test-nightly: $(VENV)/.docs-ready  ## everything, with deeper property search
	MTLCORE_HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n 2 --slow

# Old versions beside today's of what they depend on: what these deprecate is not our matter.
test-floor: QUIET := -W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning -W ignore::FutureWarning
test-floor:  ## the fast tests with the lowest version of every dependency that pyproject.toml allows
	test -x $(FLOOR)/python || $(PYTHON) -m venv $(dir $(FLOOR))
	$(FLOOR)/python -m pip install --quiet --disable-pip-version-check uv
	$(FLOOR)/uv pip install --quiet --python $(FLOOR)/python --resolution lowest-direct -e '.[dev]'
	$(FLOOR)/python -m pytest -n 2 $(QUIET)

test-device: $(READY)  ## what depends on the device, on an accelerator (DEVICE=cuda)
	$(BIN)/python -m pytest -n 0 tests/devices --device $(DEVICE)

check: $(READY)  ## style, types, and the one rule of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## repair the style in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

verify: $(READY)  ## every law on every built-in plugin
	$(BIN)/mtl verify

verify-nightly: $(READY)  ## ten times deeper, on the seed of the day; mutants, correct twins, convergence (hours)
	$(BIN)/mtl verify --max-examples 1000 --hunt 10 --seed $$(date +%Y%m%d)
	$(BIN)/python -m mtlverify.mutants --seeds 1000 --jobs 2
	$(BIN)/mtl converge

bench-speed: $(READY)  ## gradient sources against the floor and the peers
	$(BIN)/mtl speed gradients

bench-systems: $(READY)  ## the three systems on conflict-rich tasks (long)
	$(BIN)/mtl bench run systems --out out/systems --jobs 2
	$(BIN)/mtl bench report out/systems

docs: $(READY)  ## regenerate the reference pages and the ledger
	$(BIN)/python docs/generate.py
	$(BIN)/python -m mtlverify.ledger --render-only

site: $(VENV)/.docs-ready  ## the documentation site in out/site; a warning or a broken link is an error
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs out/site
	@echo "open out/site/index.html"

wheel: $(READY)  ## a wheel and an sdist in dist
	$(BIN)/python -m build --no-isolation --outdir dist

$(VENV)/.docs-ready: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[docs]'
	touch $@

# The stamp depends on what is installed: a changed requirement reinstalls, nothing else does.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[dev]'
	printf '%s\n' $(ROOMS) > "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/mtlcore-checkout.pth"
	touch $(READY)

clean:  ## remove the environment and what the commands wrote
	rm -rf $(VENV) out build dist *.egg-info
