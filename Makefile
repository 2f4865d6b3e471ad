# The two commands: `make demo` shows the main job end to end, `make test` runs the whole suite. Both set everything up.

CACHE ?= $(CURDIR)/.cache
PYTHON = $(CACHE)/venv/bin/python
export SEALED_LOCAL_CACHE = $(CACHE)

.PHONY: help demo test fast mutate bench setup protos lock

help:   ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: setup  ## show the main job end to end and write build/demo.html
	@$(PYTHON) -m lab.demo

test: setup  ## the whole suite, the lab included
	@$(PYTHON) -m pytest $(PYTEST_ARGS)

fast: setup  ## everything but the lab: a minute
	@$(PYTHON) -m pytest tests/unit tests/properties tests/rpc tests/tools $(PYTEST_ARGS)

mutate: setup  ## break the lines that carry promises one by one; a survivor fails (PROMISE=word: only those with it)
	@scripts/mutate $(PROMISE)

bench: setup  ## measure against bare tools, in the lab, and print ratios
	@$(PYTHON) -m bench

setup:  ## packages and the Python environment
	@scripts/setup

protos: setup  ## generate csi/node/rpc/proto from protos/
	@scripts/generate-protos

lock:   ## make requirements/*.txt from pyproject.toml (needs uv)
	@scripts/lock
