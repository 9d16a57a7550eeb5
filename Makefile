# One command per need; `make help` lists them, and CI runs the same ones (.ci/run).
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
CLIENTS := tests/clients

.PHONY: help setup up test lint format lock bench-submit bench-latency bench-courier bench-worker bench-broadcast bench-operator bench-policy bench-job bench-fairness bench bench-compare profile-submit profile-worker capacity run-loadtest soak chaos images ci clean

help: ## Show this list
	@echo "make TARGET [ARGS='...']; with DRY_RUN=1, those for the environments and the cluster only print their commands"
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z -]*:.*## / {if (length($$1) > 16) {printf "  %s\n", $$1; $$1 = ""} printf "  %-16s %s\n", $$1, $$2}' Makefile

##@ Work on darkroom

setup: $(CLIENTS)/node_modules/.package-lock.json ## Make .venv from the locked versions
	@$(PYTHON) cli/darkroom_cli/bootstrap.py

$(CLIENTS)/node_modules/.package-lock.json: $(CLIENTS)/package.json $(CLIENTS)/package-lock.json
	@if command -v npm >/dev/null; then \
	  echo "== Installing the packages of the JavaScript clients" && \
	  npm ci --silent --prefix $(CLIENTS) && touch $@; \
	else \
	  echo "npm is not installed: the tests of the JavaScript clients are skipped"; \
	fi

up: ## Run darkroom on this machine (sets it up first); Ctrl-C stops it
	@$(PYTHON) cli/darkroom_cli/bootstrap.py up $(ARGS)

test: setup ## Run the tests, two files at a time; ARGS: files and options of pytest
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup ## Check style, format, types and imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=loadtest $(BIN)/lint-imports

format: setup ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# It does not depend on setup, which fails with an incomplete lock.
lock: ## Write requirements.lock from pyproject.toml; ARGS=--upgrade for newer versions
	@test -x $(BIN)/uv || $(MAKE) setup
	@$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --group torch-needs --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --output-file requirements.lock $(ARGS)

ci: ## Run the gate, as CI does
	@.ci/run

clean: ## Remove .venv, caches and figures; the data of `make up` stays
	@rm -rf .venv $(CLIENTS)/node_modules .bench build dist
	@rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Environments on this machine: docs/environments.md

# A dry run installs nothing.
READY := $(if $(DRY_RUN),$(BIN)/python,setup)
ENVIRONMENT := $(BIN)/python -m darkroom_cli env
DRY := $(if $(DRY_RUN),--dry-run)
PARTS := api celery flower redis-keys redis-info redis-flush
.PHONY: $(foreach part,$(PARTS),$(part)-dev $(part)-demo $(part)-test)

$(BIN)/python:
	@echo "$@ does not exist: run make setup first" >&2; exit 2

api-dev api-demo api-test: api-%: $(READY) ## Run the functions and the courier, until Ctrl-C
	@$(ENVIRONMENT) $* api $(DRY) $(ARGS)

celery-dev celery-demo celery-test: celery-%: $(READY) ## Run a worker, until Ctrl-C
	@$(ENVIRONMENT) $* worker $(DRY) $(ARGS)

flower-dev flower-demo flower-test: flower-%: $(READY) ## Run Flower, Celery's dashboard, until Ctrl-C
	@$(ENVIRONMENT) $* flower $(DRY) $(ARGS)

redis-keys-dev redis-keys-demo redis-keys-test: redis-keys-%: $(READY) ## List the keys in Redis
	@$(ENVIRONMENT) $* keys $(DRY) $(ARGS)

redis-info-dev redis-info-demo redis-info-test: redis-info-%: $(READY) ## Print the number of keys and the memory of Redis
	@$(ENVIRONMENT) $* info $(DRY) $(ARGS)

redis-flush-dev redis-flush-demo redis-flush-test: redis-flush-%: $(READY) ## Delete the keys in Redis, after a confirmation
	@$(ENVIRONMENT) $* flush $(DRY) $(ARGS)

##@ A cluster on this machine, with k3d: knative/README.md

CLUSTER_STEPS := setup-cluster deploy-services deploy-app deploy-balancer start-workshop api-ui flower-ui show-ui remove-app clean-all
.PHONY: $(CLUSTER_STEPS)

setup-cluster: ## Create the cluster, with Knative Serving, Eventing and Kourier
	@sh knative/cluster.sh $@

deploy-services: ## Deploy Redis, PostgreSQL and an S3 server
	@sh knative/cluster.sh $@

deploy-app: ## Deploy darkroom with a pool of workers; builds missing images
	@sh knative/cluster.sh $@

deploy-balancer: ## Deploy the gateway
	@sh knative/cluster.sh $@

start-workshop: ## All of the above, in order
	@sh knative/cluster.sh $@

api-ui: ## Forward http://localhost:8000 to the API, until Ctrl-C
	@sh knative/cluster.sh $@

flower-ui: ## Forward http://localhost:5555 to Flower, until Ctrl-C
	@sh knative/cluster.sh $@

show-ui: ## Print all addresses
	@sh knative/cluster.sh $@

remove-app: ## Delete darkroom and its data from the cluster; the cluster stays
	@sh knative/cluster.sh $@

clean-all: ## Delete the cluster
	@sh knative/cluster.sh $@

# The names in knative/; Knative resolves names of dev.local in no registry. worker-diffusers is left out for its size.
IMAGES := functions operator courier worker-cpu flower gateway
BUILDER := podman
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

# A tag depends on the contents of the image and is written into the manifests, so that applying them replaces changed parts.
images: ## Build the container images; BUILDER=buildah, BASE=, TAG=, IMAGES=worker-diffusers, TORCH_INDEX=
	@set -e; id=$$(mktemp); trap 'rm -f "$$id"' EXIT; for image in $(IMAGES); do \
	  case $$image in \
	    functions | operator | courier) folder=$$image ;; \
	    gateway) folder=functions/gateway ;; \
	    *) folder=worker-images/$${image#worker-} ;; \
	  esac; \
	  echo "== dev.local/darkroom-$$image, of $$folder/Dockerfile"; \
	  $(BUILDER) build --layers --file "$$folder/Dockerfile" --iidfile "$$id" \
	    $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) $(ARGS) .; \
	  $(if $(TAG),:,test -s "$$id" || { echo "$(BUILDER) wrote no id of the image" >&2; exit 1; }); \
	  tag=$(or $(TAG),$(VERSION)-$$(sed 's/^sha256://' "$$id" | cut -c 1-12)); \
	  $(BUILDER) tag "$$(cat "$$id")" "dev.local/darkroom-$$image:$$tag"; \
	  $(if $(TAG),:,$(PYTHON) knative/tags.py "dev.local/darkroom-$$image=$$tag"); \
	done
	@$(BUILDER) images --filter reference='dev.local/darkroom-*'

##@ Measure

bench-submit: setup ## Measure how many submissions one function process accepts
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench.submit $(ARGS)

bench-latency: setup ## Measure how soon a job starts and how soon its terminal event is published
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench.latency $(ARGS)

bench-courier: setup ## Measure how many webhooks one courier delivers, also beside a receiver that hangs
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench.courier $(ARGS)

bench-worker: setup ## Measure the overhead of a worker around the engine
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench.worker $(ARGS)

bench-broadcast: setup ## Measure how fast a thousand sockets receive a message, and the cost of a socket
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench.broadcast $(ARGS)

bench-operator: setup ## Measure how soon the operator acts, and the cost of a thousand pools (needs KUBEBUILDER_ASSETS)
	@PYTHONPATH=loadtest:. $(BIN)/python -m darkroom_loadtest.bench.operator $(ARGS)

bench-policy: setup ## Compare the cost and waiting times of scaling with KEDA and others on simulated days
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.policy.bench $(ARGS)

bench-job: setup ## Measure the cost of one job: Redis' memory and calls, and each process' time
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench.job $(ARGS)

bench-fairness: setup ## Measure how long a tenant waits beside one that floods its pool, and shares by weight
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench.fairness $(ARGS)

bench: setup ## Run all benchmarks and print one table; ARGS: names, --repeat 3, --into FOLDER
	@PYTHONPATH=loadtest:. $(BIN)/python -m darkroom_loadtest.bench.run $(ARGS)

bench-compare: setup ## Print the changes between two folders of benchmarks beyond the noise: A=before B=after
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.bench.compare $(A) $(B)

profile-submit profile-worker: profile-%: setup ## Draw a flame graph of a submission or of a job (as root)
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.profiling.flames $* $(ARGS)

capacity: setup ## Compute what a load needs and which limit it reaches first: ARGS="--jobs-per-s 5 --engine-s 8"
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.profiling.capacity $(ARGS)

# PROFILE, SHAPE and HOST as in loadtest/README.md; ARGS for other options.
run-loadtest: $(READY) ## Put load on a running darkroom and write a report; PROFILE= SHAPE= HOST= UI=1 DRY_RUN=1
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.load.run $(if $(PROFILE),--profile $(PROFILE)) \
	  $(if $(SHAPE),--shape $(SHAPE)) $(if $(HOST),--host $(HOST)) $(if $(UI),--ui) $(if $(DRY_RUN),--dry-run) $(ARGS)

soak: ## Load a running darkroom for 20 minutes; the report has the slope of each process' memory
	@$(MAKE) --no-print-directory run-loadtest PROFILE=mixed SHAPE=soak ARGS='$(ARGS)'

chaos: setup ## Kill every part while jobs run: no job is lost or doubled; WITHOUT=reaper, for example, must fail
	@PYTHONPATH=loadtest $(BIN)/python -m darkroom_loadtest.chaos.run $(if $(WITHOUT),--without $(WITHOUT)) $(ARGS)
