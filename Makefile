# `make` lists the targets. Everything runs in .venv, which is made on first use. Another Python: make PYTHON3=python3.12

PYTHON3 ?= python3
VENV    := .venv
PYTHON  := $(VENV)/bin/python
PIP     := $(PYTHON) -m pip
ARGS    ?=

# The grids of each table, in the order in which they have to run.
GRIDS  := table1 table2 table3 table4
table1 := table1
table2 := cold_start table2_beta table2_mix table2_start table2_anchor table2_reference
table3 := table3_estimator table3_k1 table3_direction table3_aggregate table3_group table3_group_flops \
	table3_advantage table3_teacher
table4 := table4_main table4_views table4_teachers table4_rewards table4_unlikely

# Scripts that train what these grids start from.
before_table3 := experiments/mini_models/larger_teacher.py

# The evaluation at the end of their runs, and of the models that are not trained, by the names of their rows.
evaluation_table1 := eval=study eval.items=200
evaluation_table2 := eval=ablation eval.items=100
evaluation_table3 := $(evaluation_table2)
evaluation_table4 := $(evaluation_table2)
rows_table1 := base=mini-student teacher=mini-teacher
rows_table2 := $(rows_table1)
rows_table4 := $(rows_table1)
rows_table3 := $(rows_table1) larger-teacher=runs/mini-models/larger-teacher/export

PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile
# What make test-quick runs: the numeric core, the configuration and a step.
QUICK  := tests/objective tests/policy tests/engine tests/invariants tests/rollout tests/config tests/training/test_update.py \
	tests/test_imports.py tests/test_readability.py tests/test_files.py \
	--ignore tests/policy/test_memory.py --ignore tests/rollout/test_sampler_ranks.py

.DEFAULT_GOAL := help
.PHONY: help demo smoke test test-quick test-slow test-all lint format mini-models larger-teacher vllm vllm-proof clean \
	figures report all check-results dashboard transfer dynamics scaling $(GRIDS) $(GRIDS:%=%-plan) $(GRIDS:%=%-runs)

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo '  make table1-plan    What the runs of table1 (table2, table3, table4) will do and cost'
	@echo '  make table1-runs    Train, evaluate and collect them; the same command resumes after an interruption (ARGS="sweep.jobs=2 ...")'
	@echo '  make table1         Its tables, figures and README numbers, from its committed results'

demo: $(VENV)/.installed ## Train the mini student with dGRPO, 4 minutes on 2 cores (ARGS="seed=1 ...")
	$(PYTHON) -m longctx_rl +algo=dgrpo experiment_name=demo-$$(date +%Y%m%d-%H%M%S) $(ARGS)
	@echo; echo 'These commands run in .venv: first  . $(VENV)/bin/activate'

smoke: $(VENV)/.installed ## Two steps of each method, in seconds
	$(PYTHON) -m longctx_rl -m +algo=sft,kd,grpo,opd,dgrpo +experiment=smoke experiment_name=smoke-$$(date +%Y%m%d-%H%M%S) $(ARGS)

mini-models: $(VENV)/.installed ## Train the shipped mini models again from random weights, about 2 hours on 2 cores
	$(PYTHON) experiments/mini_models/build.py $(ARGS)

larger-teacher: $(VENV)/.installed ## Train a mini teacher of twice the depth, half an hour; make table3-runs does it first
	$(PYTHON) experiments/mini_models/larger_teacher.py $(ARGS)

# 1.5 GB. A folder of its own: vLLM wants another transformers.
vllm: $(VENV)/.installed ## Install vLLM for rollout=vllm, on a plain CPU, into .venv-vllm
	$(PYTHON) experiments/vllm/install.py

vllm-proof: $(VENV)/.installed-dev vllm ## Sample, train, build data and judge answers with real vLLM servers, an hour
	$(PYTHON) experiments/vllm/prove.py $(ARGS)
	$(PYTHON) experiments/vllm/setups.py
	$(PYTHON) experiments/vllm/train.py
	$(PYTHON) experiments/vllm/sampling.py

$(GRIDS): $(VENV)/.installed
	$(PYTHON) -m longctx_rl.report tables $@

# These are read from table1's runs.
transfer dynamics scaling: table1

figures: $(VENV)/.installed ## Tables, figures and README numbers of every study with results
	$(PYTHON) -m longctx_rl.report tables

report: $(VENV)/.installed-report ## One HTML page that compares runs (ARGS="--runs runs/table1 --out report.html")
	$(PYTHON) -m longctx_rl.report page $(ARGS)

all: figures ## Every table, every figure, and the page if there are runs
	@if test -d runs; then $(MAKE) report; else echo 'No page: it is made from run directories, and there is no runs/ here.'; fi

check-results: $(VENV)/.installed ## Fail if a committed result or number does not follow from its configuration and results
	$(PYTHON) -m longctx_rl.report check

# Without a key nothing is installed, and the command says what to set.
dashboard: $(VENV)/.installed ## A wandb workspace and report of a study (STUDY=table1; needs WANDB_API_KEY)
	@test -z "$$WANDB_API_KEY" || $(MAKE) --no-print-directory $(VENV)/.installed-dashboard
	$(PYTHON) -m longctx_rl.report dashboard '$(or $(STUDY),table1)'

$(GRIDS:%=%-plan): %-plan: $(VENV)/.installed
	@for grid in $($*); do $(PYTHON) -m longctx_rl -m +experiment=$$grid sweep.plan=true $(ARGS) || exit; done

# A failure does not stop the rest; Ctrl-C does. ARGS applies to the grids alone.
$(GRIDS:%=%-runs): %-runs: $(VENV)/.installed
	@command -v bwrap >/dev/null || echo 'warning: without bubblewrap code cannot be graded: apt install bubblewrap' >&2
	@failed=0; run() { "$$@" || { test $$? != 130 || exit 130; failed=1; }; }; \
	for script in $(before_$*); do run $(PYTHON) $$script; done; \
	for grid in $($*); do run $(PYTHON) -m longctx_rl -m +experiment=$$grid $(ARGS); done; \
	for row in $(rows_$*); do \
		run $(PYTHON) -m longctx_rl.evaluate checkpoint=$${row#*=} out=runs/$*/$${row%%=*} logging=wandb $(evaluation_$*); \
	done; \
	run $(PYTHON) -m longctx_rl.report collect $*; \
	test $$failed = 0 || { echo 'incomplete: the failures are named above; the same command resumes' >&2; exit 1; }

test: $(VENV)/.installed-dev ## Run the tests, without those that only guard a release (ARGS="-k name")
	$(PYTEST) -m "not slow" $(ARGS)

test-quick: $(VENV)/.installed-dev ## What a change to the core needs before a commit: two minutes
	$(PYTEST) -m "not slow" $(QUICK) $(ARGS)

test-slow: $(VENV)/.installed-dev ## Run the tests that only guard a release
	$(PYTEST) -m slow $(ARGS)

test-all: $(VENV)/.installed-dev ## Run every test
	$(PYTEST) $(ARGS)

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

# Stamps: a second make does not install again unless pyproject.toml or constraints.txt changed, or Python is gone.
ifneq ($(shell test -x $(PYTHON) && echo there),there)
.PHONY: $(VENV)/.installed
endif
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PIP) --version >/dev/null 2>&1 || command -v $(PYTHON3) >/dev/null || \
	  { echo 'error: $(PYTHON3) is not installed; choose another Python with: make PYTHON3=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; choose one with: make PYTHON3=python3.12 $(MAKECMDGOALS)")'
	$(PIP) --version >/dev/null 2>&1 || $(PYTHON3) -m venv $$($(PYTHON) -c '' 2>/dev/null || echo --clear) $(VENV)
	$(PIP) install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-report: $(VENV)/.installed
	$(PIP) install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[report]'
	@touch $@

$(VENV)/.installed-dashboard: $(VENV)/.installed
	$(PIP) install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dashboard]'
	@touch $@

# Programs that some tests need, with their Debian packages: generated code runs in bubblewrap, the report page in Chromium.
PROGRAMS := bwrap=bubblewrap chromium=chromium chromedriver=chromium-driver

$(VENV)/.installed-dev: $(VENV)/.installed
	@for pair in $(PROGRAMS); do \
	  command -v $${pair%=*} >/dev/null && continue; \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	    { test -n "$$updated" || apt-get update -qq; updated=1; } && \
	    apt-get install -qq -y --no-install-recommends $${pair#*=} >/dev/null; } || \
	  echo "$${pair%=*} is not installed, so its tests are skipped: apt install $${pair#*=}"; \
	done
	$(PIP) install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
