# make demo   installs into .venv once, then trains and tests a Mask R-CNN on generated scenes
# make test   the same installation, then all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check venv
help:
	@echo "make demo    train and test a Mask R-CNN on generated scenes; results in output/demo"
	@echo "make test    all tests"
	@echo "make check   ruff"
	@echo "make venv    only the installation"

venv: $(INSTALLED)

$(INSTALLED): constraints.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV), once; torch and its libraries take some 5 GB."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "No venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: venv
	$(BIN)/maskrcnn-bench demo --output output/demo

test: venv
	@$(BIN)/python -m pytest -q && echo "make test: everything passed." || { echo "make test: failed, see above."; exit 1; }

check: venv
	$(BIN)/ruff check .
