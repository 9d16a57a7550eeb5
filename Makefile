# One command per need; `make help` lists them, and CI runs the same ones (.ci/run).
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
CLIENTS := tests/clients

.PHONY: help setup up test lint format lock bench-submit bench-latency bench-courier bench-worker bench-broadcast bench-operator bench-policy chaos ci clean

help: ## Show this list
	@echo "make TARGET [ARGS='...']"
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' Makefile

setup: $(CLIENTS)/node_modules/.package-lock.json ## Make .venv from the locked versions
	@$(PYTHON) cli/darkroom_cli/bootstrap.py

$(CLIENTS)/node_modules/.package-lock.json: $(CLIENTS)/package.json $(CLIENTS)/package-lock.json
	@if command -v npm >/dev/null; then \
	  echo "== Installing what the tests of the JavaScript client need" && \
	  npm ci --silent --prefix $(CLIENTS) && touch $@; \
	else \
	  echo "npm is not here: the tests of the JavaScript client will not run"; \
	fi

up: ## Run darkroom on this machine (sets it up first); Ctrl-C ends all of it
	@$(PYTHON) cli/darkroom_cli/bootstrap.py up $(ARGS)

test: setup ## Run the tests; ARGS takes files and options of pytest
	@$(BIN)/python -m pytest $(ARGS)

lint: setup ## Check style, format, types and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## Put the code into the format that lint asks for
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Not after setup, which a lock that lacks something fails.
lock: ## Write requirements.lock from pyproject.toml; ARGS=--upgrade takes newer versions
	@test -x $(BIN)/uv || $(MAKE) setup
	@$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --group torch-needs --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --output-file requirements.lock $(ARGS)

bench-submit: setup ## Measure how many submissions one function process takes
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench_submit $(ARGS)

bench-latency: setup ## Measure how soon a job starts and how soon its end is told
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench_latency $(ARGS)

bench-courier: setup ## Measure how many webhooks one courier delivers, and what one that hangs does to others
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench_courier $(ARGS)

bench-worker: setup ## Measure what a worker adds to the engine's own time
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench_worker $(ARGS)

bench-broadcast: setup ## Measure how fast a thousand sockets are told, and what one costs
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench_broadcast $(ARGS)

bench-operator: setup ## Measure how soon the operator acts, and what a thousand pools cost (needs KUBEBUILDER_ASSETS)
	@PYTHONPATH=loadtest:. $(BIN)/python -m darkroom_loadtest.bench_operator $(ARGS)

bench-policy: setup ## Compare what scaling costs, and the waits it gives, with KEDA and others on simulated days
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench_policy $(ARGS)

chaos: setup ## Kill everything while jobs run: none is lost or doubled; WITHOUT=reaper, say, must fail
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.chaos $(if $(WITHOUT),--without $(WITHOUT)) $(ARGS)

ci: ## Run the gate, as CI does
	@.ci/run

clean: ## Remove .venv, caches and figures; the data of `make up` stays
	@rm -rf .venv $(CLIENTS)/node_modules .bench build dist
	@rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
