# make run    the whole pipeline: demos -> features -> policy -> evaluation -> report
# make test   the tests that need neither a GPU nor many minutes; realtime tests run one at a time beside the others
# make slow   the tests that take minutes, one of which installs the package from the registry
# make docs   build the documentation and API reference as a site: site/index.html
# make mutants  plant faults in the core and count those that the tests catch; takes an hour
# Each creates .venv on first use. To use another interpreter: make run PYTHON=python3.12
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed
PYTEST := $(BIN)/python -m pytest
# Seconds until a hanging test fails and shows where. The longest took 184 s beside a process that kept a core busy.
LIMIT := --timeout 600

# Without bytecode files, each of the many processes would compile the package again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: run test slow lint types docs mutants clean

run: $(STAMP)
	$(BIN)/s2robot run $(ARGS)

# Realtime tests run one at a time, with priority over the others (`nice`); their output is printed last.
# Three workers on two cores, because a test that waits for the emulated box leaves its core idle.
# Exit code 5 is "no test was selected": with ARGS=<file>, one of the two parts may have none.
test: $(STAMP)
	@log=$$(mktemp); \
	$(PYTEST) $(LIMIT) -m "realtime and not slow and not gpu" $(ARGS) > $$log 2>&1 & clock=$$!; \
	nice $(PYTEST) $(LIMIT) -n 3 --dist loadscope --no-loadscope-reorder \
	    -W "ignore:Module already imported" -m "not slow and not gpu and not realtime" $(ARGS); others=$$?; \
	wait $$clock; timed=$$?; cat $$log; rm $$log; \
	for code in $$others $$timed; do [ $$code = 0 ] || [ $$code = 5 ] || exit $$code; done

slow: $(STAMP)
	$(PYTEST) -m slow $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: .venv/docs-installed
	PYTHONPATH=. $(BIN)/mkdocs build --strict --quiet
	@echo 'site/index.html; with search: python -m http.server -d site'

mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mutants]'
	$(BIN)/python benchmarks/mutants.py $(ARGS)

.venv/docs-installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

# A failed install leaves no stamp, so the next call starts from an empty environment.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
