# `make demo` and `make test`: from an empty machine to a decoded face, and to passed tests.
# VENV=... chooses another folder for the environment, PYTHON=... the Python that creates it.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
INSTALL = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Bytecode: on all cores in two thirds of pip's time. Python itself writes none where PYTHONDONTWRITEBYTECODE is set, as
# in many containers; then every process would compile what it imports. Not every file of every package compiles.
COMPILE = $(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib aecore cluster jobs serving || true
PYTEST = $(VENV)/bin/pytest -n 2 --dist loadgroup --durations 20
SOURCES = aecore cluster jobs serving tests docs
# pytest rewrites the assertions of each test's file and of its plugins: 8 of 20 seconds of collection without bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-faults test-hosts mutants docs install install-dev install-servers clean

demo: install
	$(VENV)/bin/zpoint demo $(ARGS)

test: install-dev
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(PYTEST) -m "not faults and not hosts" $(ARGS)

# Killed processes, failing stores, damaged caches: slow, and heavy on processes.
test-faults: install-dev
	$(PYTEST) -m faults $(ARGS)

# Ray on several hosts, made of network namespaces, and beside PostgreSQL, MLflow, Prometheus and Redis: needs root and
# `make install-servers`. One process: the tests of a file share hosts. ARGS='-m "hosts and slow"' runs the longer ones.
test-hosts: install-dev
	$(VENV)/bin/pytest -m "hosts and not slow" --durations 20 $(ARGS)

# On Debian, as root: the servers and the browser that the tests start themselves.
install-servers:
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends chromium iproute2 postgresql prometheus redis-server

# Faults planted in copies of the code, one at a time: do the quick tests notice? An hour or more on 2 cores.
mutants: install-dev
	nice $(VENV)/bin/python tests/mutants.py $(ARGS)

docs: install
	$(VENV)/bin/python docs/generate.py

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# The stamps are written last: an interrupted installation starts again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "zpoint: error: no Python 3.11 or 3.12 found: install one, or name it with PYTHON=..." >&2; exit 2; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || \
		{ rm -rf $(VENV); echo "zpoint: error: $(PYTHON) makes no environment: on Debian, apt-get install python3-venv" >&2; exit 2; }
	@echo "installing into $(VENV): about 8 GB, some minutes" >&2
	$(INSTALL) --no-compile -e .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
