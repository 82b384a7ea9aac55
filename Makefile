# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
CONFIG ?= jobs/configs/quickstart.toml
RECRANKER_HOME ?= $(HOME)/.recranker
export RECRANKER_HOME

.PHONY: help setup quickstart test test-slow test-gpu lint format benchmark-env mlflow serve cluster cluster-stop clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: .venv/ready  ## Create .venv with everything installed

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

quickstart: setup  ## The whole job on MovieLens-100K with a 135M model
	$(BIN)/python -m jobs.pipeline $(CONFIG)

test: setup  ## The tests that need minutes, no network and no GPU
	$(BIN)/python -m pytest

test-slow: setup  ## The rest: real data, real model
	$(BIN)/python -m pytest -m slow

test-gpu: setup  ## Those that need a GPU; all others hide it
	$(BIN)/python -m pytest -m gpu

lint: setup  ## Format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: setup  ## Rewrite files in the common format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

benchmark-env: .venv-benchmark/ready  ## The systems that jobs.benchmark compares with, in .venv-benchmark

.venv-benchmark/ready: jobs/benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-benchmark
	.venv-benchmark/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-benchmark/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement jobs/benchmarks/requirements.txt
	touch .venv-benchmark/ready

mlflow: setup  ## The page that compares runs, on loopback
	$(BIN)/mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///$(RECRANKER_HOME)/mlflow.db

serve: setup  ## Rank over HTTP with the quickstart's model, on loopback
	$(BIN)/python -m jobs.publish $(CONFIG)
	RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy:middlewares \
	RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=1 RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S=2 \
	$(BIN)/serve run serve/config.yaml

cluster: setup  ## A one-machine Ray cluster on loopback, for job submission
	PATH="$(CURDIR)/$(BIN):$$PATH" bash cluster/local.sh start

cluster-stop:  ## End that cluster
	PATH="$(CURDIR)/$(BIN):$$PATH" bash cluster/local.sh stop

clean:  ## Remove what was built here; results stay in RECRANKER_HOME
	rm -rf .venv .venv-benchmark build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
