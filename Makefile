# Every target installs what it needs into a virtual environment in .venv, with the versions in
# constraints.txt. Nothing is installed elsewhere.

VENV  ?= .venv
# The first of these that runs and is 3.11 or later. Override: `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip --quiet --disable-pip-version-check
PACKAGES = --editable ".[all]" $(foreach package,$(INTEGRATIONS),--editable $(package))
INPUT := pyproject.toml constraints.txt $(wildcard integrations/*/pyproject.toml)
INTEGRATIONS := integrations/langchain-autoplay integrations/llama-index-readers-autoplay
# The number of parallel test processes: one per core.
WORKERS ?= logical
# What cluster-demo streams through: postgres or kafka.
QUEUE ?= postgres
# langgraph's packages need newer versions of langchain-core and of each other than their
# metadata says.
OLDEST_LANGCHAIN := langchain-core==1.2.0 langchain==1.1.0 langgraph==1.0.4 \
	langgraph-prebuilt==1.0.5 langgraph-checkpoint==3.0.1
OLDEST_LLAMA_INDEX := llama-index-core==0.13.0 llama-index-vector-stores-chroma==0.5.5
ALL_VERSIONS := 3.11 3.12 3.13

# $(call pytest,MARKERS,OPTIONS) runs the three suites in turn, each with its own settings.
define pytest
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "($(1)) and not browser" $(2)
	@for suite in $(INTEGRATIONS); do \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "$(1)" $(2) $$suite/tests || exit 1; \
	done
endef

.PHONY: help demo cluster-demo serve test test-slow test-browser chromium screenshots test-all test-oldest test-newest lint format bench bench-large notebooks soak docs pins clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

demo: $(VENV)/.demo  ## Stream sample sessions into Chroma and search them; needs no key and no service
	@$(BIN)/autoplay-rag demo

cluster-demo: $(VENV)/.dev  ## Run three replicas on one PostgreSQL, kill one, and check that nothing is missing (QUEUE=kafka: through a topic)
	@$(BIN)/python -m benchmarks.cluster_demo --queue $(QUEUE)

serve: $(VENV)/.demo  ## Serve the inspector with samples that stream on and on; Ctrl-C ends it
	@$(BIN)/autoplay-rag serve --samples

test: $(VENV)/.dev  ## Run all tests except the slow ones
	$(call pytest,not slow)

test-slow: $(VENV)/.dev  ## Run the slow tests, and the property tests with more examples
	$(call pytest,slow or hypothesis,--hypothesis-profile=thorough --timeout=300)

test-browser: $(VENV)/.dev  ## Run the tests of the inspector in a headless Chromium
	@$(BIN)/python tools/chromium.py
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m browser tests/browser

chromium: $(VENV)/.dev  ## Install a Chromium for test-browser, unless there is one
	@sh tools/install_chromium.sh $(BIN)/python

screenshots: $(VENV)/.dev  ## Take the pictures in docs/images again; takes an hour
	$(BIN)/python tools/take_screenshots.py

test-all:  ## Run `make test` on each of Python 3.11, 3.12 and 3.13 that is installed
	@set -e; for v in $(ALL_VERSIONS); do \
		python=$$(sh tools/find_python.sh $$v) || { echo "-- Python $$v: not installed"; continue; }; \
		echo "-- Python $$v: $$python"; \
		$(MAKE) --no-print-directory test PYTHON="$$python" VENV=.venv-$$v; \
	done

test-oldest:  ## Test the integrations with the oldest LangChain and LlamaIndex they allow
	PYTHON="$(PYTHON)" sh tools/test_versions.sh langchain-autoplay $(OLDEST_LANGCHAIN)
	PYTHON="$(PYTHON)" sh tools/test_versions.sh llama-index-readers-autoplay $(OLDEST_LLAMA_INDEX)

test-newest:  ## Test the integrations with the newest versions, without the pins
	@for suite in $(INTEGRATIONS); do \
		PYTHON="$(PYTHON)" sh tools/test_versions.sh $$(basename $$suite) || exit 1; \
	done

lint: $(VENV)/.dev  ## Check style and types with ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy tests/typing/api.py
	$(BIN)/python -m mypy -p tools.docs_site
	@for package in $(INTEGRATIONS); do (cd $$package && ../../$(BIN)/python -m mypy) || exit 1; done

format: $(VENV)/.dev  ## Fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench  ## Measure the figures of the README in 15 minutes, and write them there
	$(BIN)/python -m benchmarks --write README.md

bench-large: $(VENV)/.bench  ## Measure what takes hours: a million chunks, load, faults, PostgreSQL
	$(BIN)/python -m benchmarks --large --write README.md

notebooks: $(VENV)/.dev  ## Run the notebooks and save their outputs
	$(BIN)/python tools/run_notebooks.py

docs: $(VENV)/.docs  ## Build the documentation into site/, and fail on every warning and broken link
	$(BIN)/python -m tools.docs_site

soak: $(VENV)/.dev  ## Run the pipeline for ten minutes at 500 events a second, with injected faults
	$(BIN)/python -m benchmarks.soak

pins:  ## Write constraints.txt with the newest versions that the packages allow
	@rm -rf .venv-pins && $(PYTHON) -m venv .venv-pins && .venv-pins/bin/python -m pip install --quiet --upgrade pip
	@.venv-pins/bin/python -m pip install --quiet $(PACKAGES) --group dev --group docs \
		$(foreach package,$(INTEGRATIONS),--group $(package)/pyproject.toml:test)
	@.venv-pins/bin/python -m pip list --format=freeze --exclude-editable | grep -v '^setuptools==' > constraints.txt
	@rm -rf .venv-pins

clean:  ## Remove the virtual environments
	rm -rf .venv .venv-*

$(VENV)/.pip: constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later was not found; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.pip $(INPUT)
	@echo "installing what the demo needs (once)"
	@$(PIP) install --constraint constraints.txt --editable ".[all]"
	@touch $@

$(VENV)/.dev: $(VENV)/.pip $(INPUT)
	@echo "installing the development tools (once)"
	@$(PIP) install --constraint constraints.txt $(PACKAGES) --group dev \
		$(foreach package,$(INTEGRATIONS),--group $(package)/pyproject.toml:test)
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	@echo "installing what the documentation needs (once)"
	@$(PIP) install --constraint constraints.txt --group docs
	@touch $@

$(VENV)/.bench: $(VENV)/.dev benchmarks/requirements.txt
	@$(PIP) install --constraint constraints.txt --requirement benchmarks/requirements.txt
	@touch $@
