# Everything that one does with a checkout; `make help` lists it. Needs make and Python 3.11 or newer.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# The same results whatever the caller's language and time zone.
export LC_ALL := C.UTF-8
export TZ     := UTC

# Standard output belongs to the program that a target runs; setting up talks on standard error.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup base demo serve test check format lock images docs pictures bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.dev-installed  ## install everything for development into .venv
	@:

base: $(VENV)/.base-installed  ## install what the server needs into .venv

demo: base  ## run a real task through a real server, here and now
	@$(PYTHON) scripts/system_packages.py demo
	@$(BIN)/python -m tesazure.cli.demo $(ARGS)

serve: base  ## leave a server on 127.0.0.1:8000
	@$(BIN)/tesazure serve --host 127.0.0.1 --port 8000 $(ARGS)

test: setup  ## run all tests (ARGS goes to pytest)
	@$(PYTHON) scripts/system_packages.py test
	@$(BIN)/python scripts/run_tests.py $(ARGS)

check: setup  ## lint, format, types, import contracts, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if [ -d tests/docs ]; then $(BIN)/python -m pytest -q tests/docs; fi

format: setup  ## format the code and apply safe lint fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## compile requirements/*.txt again (needs uv; ARGS goes to it)
	scripts/lock.sh $(ARGS)

images: setup  ## make the test images' file systems ahead of a test run
	@$(PYTHON) scripts/system_packages.py test
	@$(BIN)/python -m tests.services.images

docs: setup  ## build the documentation's site into site/ (ARGS goes to mkdocs)
	@$(PYTHON) scripts/system_packages.py docs
	@NO_MKDOCS_2_WARNING=1 $$($(BIN)/python -m tests.clients.venvs docs) -m mkdocs build $(ARGS)
	@echo "to read it: $(PYTHON) -m http.server --bind 127.0.0.1 --directory site"

pictures: setup  ## take the pictures in docs/pictures again, of a running server
	@$(PYTHON) scripts/system_packages.py pictures
	@$(BIN)/python -m tests.site.pictures

bench: setup  ## measure; JSON on standard output (ARGS goes to it)
	@$(PYTHON) scripts/system_packages.py bench
	@$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove what these targets made in the checkout
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@scripts/make_venv.sh "$(PYTHON)" $(VENV) >&2

$(VENV)/.base-installed: requirements/base.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing tesazure into $(VENV)" >&2
	@$(INSTALL) --require-hashes -r requirements/base.txt >&2
	@$(INSTALL) --no-deps --no-build-isolation --editable . >&2
	@touch $@

# The development set contains the other one, in the same versions.
$(VENV)/.dev-installed: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing tesazure and its development tools into $(VENV)" >&2
	@$(INSTALL) --require-hashes -r requirements/dev.txt >&2
	@$(INSTALL) --no-deps --no-build-isolation --editable . >&2
	@touch $(VENV)/.base-installed $@
