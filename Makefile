# `make` lists what there is. Everything runs in .venv, which is made on first use. Another Python: make PYTHON3=python3.12

PYTHON3 ?= python3
VENV    := .venv
PYTHON  := $(VENV)/bin/python
ARGS    ?=

.DEFAULT_GOAL := help
STUDIES := table1 table2 table3
.PHONY: help demo smoke test lint format mini-models vllm-proof clean $(STUDIES) figures report all check-results dashboard

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'
	@echo '  make $(word 1,$(STUDIES)), $(word 2,$(STUDIES)), $(word 3,$(STUDIES))  Tables, figures and README numbers of a study, from its committed results'

demo: $(VENV)/.installed ## Train the mini student with dGRPO, 4 minutes on 2 cores (ARGS="seed=1 ...")
	$(PYTHON) -m longctx_rl +algo=dgrpo experiment_name=demo-$$(date +%Y%m%d-%H%M%S) $(ARGS)
	@echo; echo 'These commands run in .venv: first  . $(VENV)/bin/activate'

smoke: $(VENV)/.installed ## Two steps of each method, in seconds
	$(PYTHON) -m longctx_rl -m +algo=sft,kd,grpo,opd,dgrpo +experiment=smoke experiment_name=smoke-$$(date +%Y%m%d-%H%M%S) $(ARGS)

mini-models: $(VENV)/.installed ## Train the shipped mini models again from random weights, about 1 hour on 2 cores
	$(PYTHON) experiments/mini_models/build.py $(ARGS)

vllm-proof: $(VENV)/.installed-dev ## Build data and judge answers against a real vLLM server, 10 minutes
	$(PYTHON) experiments/vllm/prove.py $(ARGS)

$(STUDIES): $(VENV)/.installed
	$(PYTHON) -m longctx_rl.report tables $@

figures: $(VENV)/.installed ## The same for every study that has tables
	$(PYTHON) -m longctx_rl.report tables

report: $(VENV)/.installed-report ## One HTML page that compares runs (ARGS="--runs runs/table1 --out report.html")
	$(PYTHON) -m longctx_rl.report page $(ARGS)

all: figures report ## Every table, every figure, and the page

check-results: $(VENV)/.installed ## Fail if a committed result or number was not made by what it says
	$(PYTHON) -m longctx_rl.report check

dashboard: $(VENV)/.installed ## A wandb workspace and report of a study (STUDY=table1; needs WANDB_API_KEY)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dashboard]'
	$(PYTHON) -m longctx_rl.report dashboard $(or $(STUDY),table1)

test: $(VENV)/.installed-dev ## Run the tests (ARGS="-k name")
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev ## Check style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(VENV)/.installed-dev ## Apply the style
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean: ## Remove caches and builds; runs and .venv stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a second make does not install again unless pyproject.toml or constraints.txt changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(PYTHON) || $(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; choose one with: make PYTHON3=python3.12 $(MAKECMDGOALS)")'
	test -x $(PYTHON) || $(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-report: $(VENV)/.installed
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[report]'
	@touch $@

# Programs that some tests need, and their Debian packages: generated code runs in bubblewrap, the report's page in Chromium.
PROGRAMS := bwrap=bubblewrap chromium=chromium chromedriver=chromium-driver

$(VENV)/.installed-dev: $(VENV)/.installed
	@for pair in $(PROGRAMS); do \
	  command -v $${pair%=*} >/dev/null && continue; \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	    { test -n "$$updated" || apt-get update -qq; updated=1; } && \
	    apt-get install -qq -y --no-install-recommends $${pair#*=} >/dev/null; } || \
	  echo "$${pair%=*} is not installed, so its tests are skipped: apt install $${pair#*=}"; \
	done
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
