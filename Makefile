# Every target builds .venv by itself: a machine with Python 3.11+ and pip is enough.

BIN := .venv/bin
STAMP := .venv/.installed
PYTHON ?= $(firstword $(foreach v,python3.11 python3.12 python3.13 python3 python,\
	$(shell $(v) -c 'import sys; print("$(v)" * (sys.version_info >= (3, 11)))' 2>/dev/null)))

.PHONY: env test quickstart pod-rehearsal lint format

env: $(STAMP)

# The stamp is written last, so an interrupted build is taken up again by the next run. The packages
# are listed because an editable install learns its top-level folders when it is made.
$(STAMP): setup.cfg pyproject.toml constraints.txt $(wildcard */__init__.py)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "fmv2 needs Python 3.11 or newer, and found none: install one, or run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Installing into .venv: about 3 GB and a few minutes the first time"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
		echo "No ensurepip: letting this Python's own pip install into .venv" >&2; \
		$(PYTHON) -m venv --clear --without-pip .venv && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check pip; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,prepare,test]'
	@rm -rf .cache/jax  # what other versions compiled is never read again
	@touch $@

lint: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

test: lint
	$(BIN)/pytest -n 2

quickstart: env
	$(BIN)/fmv2 quickstart

pod-rehearsal: env
	$(BIN)/python -m benchmarks.pod_rehearsal

format: env
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
