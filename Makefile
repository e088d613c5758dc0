# All targets but `clean` use .venv; `make setup` creates it, and runs first if needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-fast lint docs clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "Setting up .venv (PyTorch is several gigabytes: a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "ITALIC needs Python 3.11 to 3.13: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Trains for two minutes on photographs of scikit-image, then measures the curve on other photographs,
# beside the included model.
demo: setup
	$(BIN)/python train.py experiment=demo hydra.run.dir=demo/two_minutes
	$(BIN)/python evaluate.py ckpt_path=demo/two_minutes weights=photo datamodule=photos output=demo/curve \
		evaluate.limit=64 'steps=[1,2,4,8,16,32]'
	@echo "Results in demo/curve: curve.png compares the network trained just now (two_minutes), the included model"
	@echo "photo and classical codecs; images.csv has every picture, two_minutes/ and photo/ a panel and an example"

# A process that has finished takes tests from another one: some files take much longer than others.
# Passive waiting: idle OpenMP threads must not occupy the cores of other processes.
test: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# While working: all but the tests that train, start processes or code for seconds.
test-fast: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --dist worksteal -m 'not slow'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Builds the documentation in site/; a broken link or any other warning is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html, or: $(BIN)/mkdocs serve"

clean:
	rm -rf demo site .pytest_cache .mypy_cache .ruff_cache
