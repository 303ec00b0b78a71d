# make demo: sample the shipped models and draw the pictures.
# make test: linter, type checker, all tests.
# make soak: damaged files, broken disks and kills, in less than 20 minutes.
# make quick: linter, types of the families and a subset of the tests, in half a minute once
# installed.
# Each creates .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
QUICK := tests/test_checks.py tests/test_files.py tests/test_new_family.py tests/gbm/test_process.py \
	tests/gbm/test_preconditioning.py tests/rotation/test_prior.py tests/ops/test_fill_normal.py
QUICK_TYPES := fastmsgm/*.py fastmsgm/gbm fastmsgm/rotation fastmsgm/sde

.PHONY: demo test soak quick lint clean

demo: $(VENV)/installed-demo
	$(RUN) -m fastmsgm demo

test: lint
	$(RUN) -m pytest --numprocesses 2 --dist loadfile

soak: $(VENV)/installed-test
	$(RUN) -m tests.soak

quick: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN) $(QUICK_TYPES)
	$(RUN) -m pytest $(QUICK)

lint: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

$(VENV)/installed-demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[images]"
	touch $@

$(VENV)/installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo
