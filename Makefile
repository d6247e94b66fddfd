# make run    the whole pipeline: demos -> features -> policy -> evaluation -> report
# make test   the tests that need neither a GPU nor many minutes
# Both create .venv on first use. Another interpreter: make run PYTHON=python3.12
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: run test slow lint types clean

run: $(STAMP)
	$(BIN)/s2robot run $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# A failed install leaves no stamp, so the next call starts from an empty environment.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
