# The two commands: `make demo` shows the main job end to end, `make test` runs the whole suite. Both set everything up.

# Whatever set-up makes outside Debian's packages lies here; README tells of the variable.
SEALED_LOCAL_CACHE ?= $(CURDIR)/.cache
PYTHON = $(SEALED_LOCAL_CACHE)/venv/bin/python
export SEALED_LOCAL_CACHE
FAST = tests/unit tests/properties tests/rpc tests/tools
# A file's tests share what they start, so they stay in one process.
IN_TWO = --numprocesses 2 --dist loadfile

.PHONY: help demo test fast cluster e2e mutate fuzz bench setup protos tables lock

help:   ## this list
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: setup  ## show the main job end to end and write build/demo.html
	@$(PYTHON) -m lab.demo

test: setup  ## the whole suite, the lab included
	@scripts/test $(PYTHON) $(PYTEST_ARGS)

fast: setup  ## everything but the lab: about ten minutes on two cores
	@$(PYTHON) -m pytest $(IN_TWO) $(FAST) $(PYTEST_ARGS)

cluster:  ## the chart in a real Kubernetes inside the lab; the first run builds Kubernetes (10 minutes on two cores)
	@scripts/setup cluster
	@scripts/build-kubernetes >/dev/null
	@SEALED_LOCAL_REQUIRE_LAB=1 $(PYTHON) -m pytest tests/cluster $(PYTEST_ARGS)

e2e:  ## Kubernetes' own tests of storage drivers against the chart in that Kubernetes (SEALED_LOCAL_SPECS=regex: a part)
	@scripts/setup cluster
	@scripts/build-kubernetes >/dev/null
	@scripts/build-suite >/dev/null
	@SEALED_LOCAL_REQUIRE_LAB=1 $(PYTHON) -m pytest -s tests/e2e $(PYTEST_ARGS)

mutate: setup  ## break the lines that carry promises one by one; a survivor fails (PROMISE=word: only those with it)
	@scripts/mutate "$(PROMISE)"

fuzz: setup  ## 120,000 changed requests to a live broker, and what was answered (SEED=number: other ones)
	@SEALED_LOCAL_FUZZ=120000 SEALED_LOCAL_FUZZ_SEED=$(SEED) $(PYTHON) -m pytest -s --timeout 3600 \
		tests/rpc/test_changed_requests.py $(PYTEST_ARGS)

bench: setup  ## measure against bare tools, in the lab, and print ratios
	@$(PYTHON) -m bench

setup:  ## packages and the Python environment
	@scripts/setup

protos: setup  ## generate the committed code of protos/
	@scripts/generate-protos

tables: setup  ## write the tables of options in docs/ from where the options are declared
	@$(PYTHON) scripts/write_tables.py

lock:   ## make requirements/*.txt from pyproject.toml (needs uv)
	@scripts/lock
