# The two commands of the README are `make shakespeare` and `make test`; each makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# PyTorch has no hash here, because its CPU and CUDA builds have different ones.
INSTALL = $(PIP) --require-hashes --no-deps --requirement $(1) && $(PIP) --constraint constraints.txt torch && \
	$(PIP) --no-deps --no-build-isolation --editable .
# The tests start many processes; where this is set, each compiles the package anew.
export PYTHONDONTWRITEBYTECODE :=
RUN := runs/speedrun
CHATGPT := runs/chatgpt

.PHONY: help env env-dev shakespeare chatgpt ladder check lint fast test native-check fuzz coverage browser docs lock audit clean

help:
	@echo "make shakespeare  set up .venv, fetch Tiny Shakespeare, train a GPT on it, and sample from it"
	@echo "make test         set up the test tools, and run every check (under 15 minutes)"
	@echo "make chatgpt      train a small ChatGPT in all its stages, and report the gain of each (25 minutes)"
	@echo "make check        fast checks (under 90 seconds)"
	@echo "make coverage     all tests with line coverage (at least 90 %)"
	@echo "make native-check compile the C++ decoder with all warnings as errors, and run it under sanitizers"
	@echo "make fuzz         attack loaders with hostile files, and the server with hostile requests (SECONDS=600 SEED=1)"
	@echo "make ladder       train the lecture's rungs s1 to s7, and compare the losses"
	@echo "make docs         build the documentation into docs/_build/html"
	@echo "make lock         pin the newest allowed version of every package"
	@echo "make audit        check the pinned packages for known vulnerabilities"
	@echo "make env          only set up .venv"
	@echo "make clean        remove .venv and all build output; runs/ stays"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Groundling needs Python 3.11 or newer, and $(PYTHON) is older; try make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt requirements.lock | $(BIN)/python
	$(call INSTALL,requirements.lock)
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt requirements-dev.lock | $(BIN)/python
	$(call INSTALL,requirements-dev.lock)
	@touch $@ $(VENV)/.ready

# The newest versions that pyproject.toml allows, for every platform. Without PyTorch, and what only its CUDA build needs.
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	--no-annotate --group build --constraint constraints.txt --custom-compile-command "make lock" \
	--no-emit-package torch --no-emit-package triton
NVIDIA = sed -i -e '/^\(nvidia\|cuda\)-/,/[^\\]$$/d'

lock: $(BIN)/python
	$(PIP) uv
	$(COMPILE) --extra dev --extra docs --output-file requirements-dev.lock
	$(COMPILE) --extra align --extra plot --extra text --constraint requirements-dev.lock --output-file requirements.lock
	$(NVIDIA) requirements.lock requirements-dev.lock

# Check the locked packages for known vulnerabilities.
audit: $(VENV)/.ready-dev
	$(PIP) pip-audit
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement requirements-dev.lock

env: $(VENV)/.ready
env-dev: $(VENV)/.ready-dev

# A finished run is not trained again. An interrupted one starts over, because its time is part of the report.
shakespeare: $(VENV)/.ready
	@if test -f $(RUN)/speedrun.json; then cat $(RUN)/speedrun.json && echo; \
		else $(BIN)/groundling speedrun --seeds 1337 --out-dir $(RUN) --overwrite; fi
	@$(BIN)/groundling sample $(RUN) --prompt "ROMEO:" --max-new-tokens 400

# The base model takes 5 minutes and is kept. Finished stages are not repeated.
chatgpt: $(VENV)/.ready
	@test -d $(CHATGPT)/base/bundle || $(BIN)/groundling pretrain configs/shakespeare_bpe.toml \
		--data.tokenizer.vocab-size 4096 --steps 900 --out-dir $(CHATGPT)/base --overwrite
	@$(BIN)/groundling chatgpt $(CHATGPT)/base --out-dir $(CHATGPT)

ladder: $(VENV)/.ready
	$(BIN)/groundling ladder

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" --hypothesis-profile=fast -p no:schemathesis

check: lint fast

test: lint docs browser
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=25

# Needs only GCC or Clang.
native-check:
	sh tests/sample/native/check.sh

# Hostile files and requests for SECONDS; a failure names its seed.
SECONDS := 600
SEED := 1
fuzz: $(VENV)/.ready-dev
	GROUNDLING_FUZZ_S=$(SECONDS) GROUNDLING_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -n 2 --timeout=0 tests/fuzz

# Counting lines takes a third more time, too much for every run.
coverage: $(VENV)/.ready-dev browser
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term --cov-fail-under=90

# The pages are tested by Debian's Chromium, and by axe-core, which comes from npm. Only what is missing is installed:
# a Node.js from elsewhere brings its own npm, which conflicts with Debian's package.
browser:
	@missing="$$(for tool in chromium npm; do command -v $$tool >/dev/null || echo $$tool; done)"; \
	if test -n "$$missing"; then \
		if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
		else echo "THE PAGES WILL NOT BE TESTED: install" $$missing; fi; fi

docs: $(VENV)/.ready-dev
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
