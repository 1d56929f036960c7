# Every target makes the virtual environment it needs; a fresh clone needs no other step.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# what training needs, without the developers' tools
AGENTS := $(VENV)/.agents
# Ray pins an older Gymnasium
RLLIB_VENV := $(VENV)-rllib
RLLIB_INSTALLED := $(RLLIB_VENV)/.installed
RUN ?= runs/demo
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: demo test test-rllib lint types format docs wheel release-check bench reproduce clean

$(AGENTS): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[agents]"
	touch $@

$(INSTALLED): $(AGENTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(RLLIB_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RLLIB_VENV)
	grep -v '^gymnasium==' constraints.txt > $(RLLIB_VENV)/constraints.txt
	$(RLLIB_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(RLLIB_VENV)/constraints.txt -e ".[rllib]" pytest hypothesis
	touch $@

demo: $(AGENTS)  ## train a policy with PPO, compare it with every heuristic
	$(BIN)/dllm-gym train ppo --output $(RUN) --max-minutes 6 $(if $(wildcard $(RUN)/config.yaml),--resume)
	$(BIN)/dllm-gym compare --agent $(RUN):sample --agent $(RUN):deterministic --agent oracle --episodes 300 --dtype auto \
		--plot $(RUN)/pareto.png --json $(RUN)/compare.json

test: $(INSTALLED)  ## the whole suite but what is marked slow
	$(BIN)/pytest -n 2 -m "not slow"

test-rllib: $(RLLIB_INSTALLED)  ## what needs Ray, and the environment on Ray's Gymnasium
	$(RLLIB_VENV)/bin/pytest tests/test_rllib.py tests/test_study_ray.py \
		tests/test_registration.py tests/test_env.py tests/test_vector_env.py tests/test_wrappers.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## the site, in build/site; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -c docs . build/site
	@echo "file://$(CURDIR)/build/site/index.html"

wheel: $(INSTALLED)  ## what a package index gets, in dist
	rm -rf build dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/pytest tests/test_wheel.py

release-check:  ## whether this commit may be released (CONTRIBUTING.md)
	@! grep -n "example\.org" pyproject.toml || { echo "pyproject.toml: where is the repository?"; exit 1; }
	@grep -q "^## $(VERSION) (20" CHANGELOG.md || { echo "CHANGELOG.md: '## $(VERSION) (date)' is missing"; exit 1; }
	@test -z "$$(git status --porcelain)" || { echo "there are changes that are not committed"; exit 1; }
	@test "$$(git describe --exact-match --tags)" = "v$(VERSION)"

bench: $(INSTALLED)  ## ratios measured side by side; writes benchmarks/results
	$(BIN)/python benchmarks/limit.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/observations.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/serving.py

reproduce: $(INSTALLED)  ## trains, evaluates and writes docs/results.md; goes on where it was interrupted
	$(BIN)/python -m benchmarks.reproduce $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) $(RLLIB_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
