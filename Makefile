# The course's commands; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
CH ?=
NB ?=
NAMES ?=
# Tests that need nothing but the package's own dependencies.
OLDEST := tests/data tests/training tests/heatmaps tests/kernel_regression tests/scoring
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help book test browser notebooks assistant check slides lab serve bench pretrained gpu offline
.PHONY: oldest colab clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

book: .venv/.book ## build the book and the slides from the stored outputs; prints the path to open
	$(BIN)/python -m tools.book

test: .venv/.test ## every check: lint, types, tests, notebooks, book, slides
	$(BIN)/python -m tools.ledger

browser: book .venv/.test ## the last part of make test alone: read every built page and deck in Chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -n 2 --dist load -rs tests/browser

notebooks: .venv/.test ## make and execute notebooks that are out of date; CH=01: that chapter's, anew
	$(BIN)/python -m tools.notebooks $(CH)

assistant: .venv/.test ## make the teaching assistant's sheet from the exercises' tests
	$(BIN)/python -m tools.assistant

check: .venv/.test ## CH=01: check your own exercise notebook (NB=path, if it is elsewhere)
	$(BIN)/python -m tools.check "$(CH)" $(NB)

slides: .venv/.book ## build the decks in _build/slides, and their PDFs where Chromium is present
	$(BIN)/python -m tools.slides --pdf --check

lab: .venv/.test ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

serve: book ## serve the book on http://localhost:8000
	$(BIN)/python -m http.server 8000 --directory _build/html

bench: .venv/.test ## run the benchmarks and store their results; NAMES="..." for some
	$(BIN)/python -m attn_course.benchmarks $(NAMES)

pretrained: .venv/.test ## train and store the models that come with the course
	$(BIN)/python -m attn_course.benchmarks.trainings --pretrained

gpu: .venv/.test ## on a CUDA GPU: the kernels' tests, compiled, then the benchmarks, stored
	$(BIN)/python -m pytest -q -m "gpu or triton" tests
	$(BIN)/python -m attn_course.benchmarks $(NAMES)

offline: .venv/.book ## one zip: book, slides, notebooks, package; reads without network
	$(BIN)/python -m tools.offline

oldest: ## test with the oldest versions that pyproject.toml allows; PYTHON=python3.11
	$(PYTHON) -m venv --clear _build/oldest
	$(PYTHON) -m tools.oldest > _build/oldest/versions.txt
	_build/oldest/bin/python -m pip install -c _build/oldest/versions.txt -e . pytest
	_build/oldest/bin/python -m pytest -q -rs $(OLDEST)

colab: ## run the notebooks as in Colab, with its versions; PYTHON=python3.12, CH=01 for one chapter
	$(PYTHON) -m venv --clear _build/colab
	_build/colab/bin/python -m pip install -r tools/colab.txt
	_build/colab/bin/python -m tools.colab $(CH)

clean: ## remove what was built (not the environment)
	rm -rf _build dist book/slides/_figures

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip

.venv/.book: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt --group book
	@touch $@

.venv/.test: .venv/.book
	$(BIN)/python -m pip install --constraint constraints.txt --editable . --group test
	$(BIN)/python -m attn_course.install_d2l
	@touch $@
