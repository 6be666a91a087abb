# Everything a developer does, by name. Needs only Python >= 3.11 and make; uv is fetched if it is absent.
SHELL := /bin/sh
PYTHON ?= python3
# the Python at hand is used; none is downloaded
export UV_PYTHON_DOWNLOADS := never
# tests start hundreds of Python processes; without bytecode files each would compile all that it imports
unexport PYTHONDONTWRITEBYTECODE
UV := $(shell command -v uv 2>/dev/null || echo .bootstrap/bin/uv)
RUN := $(UV) run --no-sync --quiet

.DEFAULT_GOAL := help
.PHONY: help helm prometheus run test test-all coverage lint check generate histories bench load e2e clean

help: ## List the targets.
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.bootstrap/bin/uv:
	$(PYTHON) -m venv .bootstrap
	.bootstrap/bin/pip install --quiet --disable-pip-version-check uv

PROJECTS := pyproject.toml sdk/pyproject.toml operator/pyproject.toml uv.lock

# running needs less than developing; neither throws out what the other installed
.venv/run: $(PROJECTS) | $(filter .bootstrap/bin/uv,$(UV))
	$(UV) sync --frozen --quiet --inexact --no-default-groups
	@touch $@

.venv/dev: $(PROJECTS) | $(filter .bootstrap/bin/uv,$(UV))
	$(UV) sync --frozen --quiet --compile-bytecode
	@touch $@ .venv/run

run: .venv/run ## Run the quickstart: manifests to working agents, on an embedded server; leaves report.md.
	$(RUN) agentstream dev examples/quickstart --until-idle 2s

# what the chart's tests render it with
HELMS := .venv/helm/4/helm .venv/helm/3/helm

$(HELMS): e2e/airgap/helm-install | .venv/dev
	UV=$(UV) e2e/airgap/helm-install $(@D) $(notdir $(@D))

helm: $(HELMS) ## Fetch helm 4 and helm 3 into .venv/helm.

# what tests alerts and dashboards; elsewhere than on Debian those tests are skipped, and say so
PROMETHEUS := .venv/prometheus/usr/bin/promtool

$(PROMETHEUS): e2e/airgap/prometheus-install | .venv/dev
	e2e/airgap/prometheus-install .venv/prometheus || echo "NO PROMETHEUS: alerts and dashboards are not tested" >&2

prometheus: $(PROMETHEUS) ## Fetch prometheus and promtool into .venv/prometheus, where there is apt.

# twice the processors: most of what tests do is to wait for servers
WORKERS = $(shell expr 2 '*' $$(getconf _NPROCESSORS_ONLN))

test: .venv/dev $(HELMS) $(PROMETHEUS) ## Run all tests in parallel, on the newest server program.
	$(RUN) pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal -q $(PYTEST)

test-all: PYTEST += --full
test-all: test ## Run all tests on every server program and helm version, at full load.

histories: .venv/dev ## Break things and check histories; SEED, SEEDS, DURATION, KINDS: tests/histories/run.py.
	$(RUN) python tests/histories/run.py

coverage: PYTEST += --cov --cov-report=term
coverage: test-all ## Run test-all and measure branch coverage, which has a floor.

lint: .venv/dev ## Check style, types and the import contracts.
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) basedpyright --verifytypes agentstream --ignoreexternal >/dev/null || \
		$(RUN) basedpyright --verifytypes agentstream --ignoreexternal
	$(RUN) lint-imports

generate: .venv/dev ## Write the generated files: CRDs, message schema, reference pages, dashboards.
	$(RUN) python -m agentstream_operator.resources.generate
	$(RUN) python -m agentstream.protocol.generate docs/reference/message.schema.json
	$(RUN) python charts/dashboards.py

check: lint coverage ## Run what CI runs: lint, and coverage.

bench: .venv/dev $(HELMS) ## Measure reconciling a thousand resources, in memory and on a real API server.
	$(RUN) python bench/reconcile.py
	$(RUN) python bench/kubernetes.py

load: .venv/dev ## Load agents of `agentstream dev` with Locust for a minute; LOAD holds its arguments.
	$(RUN) python load/run.py --minutes 1 $(LOAD)

e2e: .venv/dev ## Test the chart on a real cluster; E2E holds arguments of pytest.
	$(RUN) pytest -o testpaths=e2e -o pythonpath=e2e -v $(E2E)

clean: ## Remove everything that make made; data of `agentstream dev` stays.
	rm -rf .venv .bootstrap .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
