# `make demo` needs python3 >= 3.12 and a package index, nothing else.
# Overridable: PYTHON (makes .venv), CONSTRAINTS (CI tests other versions), ARGS (`make test ARGS="-k zoo"`).

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ARGS ?=
INSTALLED := .venv/.installed

.PHONY: help demo test lint format wheel clean

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## Train five guides on one model and compare them: the table, and report/
	.venv/bin/ppvae compare

test: $(INSTALLED)  ## Run the tests
	.venv/bin/pytest -n logical --dist loadfile --durations=10 $(ARGS)

lint: $(INSTALLED)  ## Check style and format
	.venv/bin/ruff check
	.venv/bin/ruff format --check

format: $(INSTALLED)  ## Mend style and format
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

wheel: $(INSTALLED)  ## Build the sdist, and from it the wheel, in dist/
	.venv/bin/python -m build --no-isolation

clean:  ## Remove what was built, and the report; .venv stays
	rm -rf build dist *.egg-info report .pytest_cache .ruff_cache .hypothesis
	find ppvae models guides notebooks tests -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { \
		echo 'ppvae needs Python >= 3.12, and "$(PYTHON)" is not one. Name it: make PYTHON=/path/to/python3.12'; \
		exit 1; }
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c $(CONSTRAINTS) -e ".[dev]"
	touch $@
