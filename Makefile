# Both targets bootstrap .venv from a bare Python; the pinned versions of constraints.txt need 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Large blocks from the heap instead of fresh pages: CPU convolutions ran 1.8 to 3 times faster with it here.
export MALLOC_MMAP_THRESHOLD_ = 4000000000
export MALLOC_TRIM_THRESHOLD_ = 20000000000
export MALLOC_TOP_PAD_ = 500000000

.PHONY: demo test lint format docs tables teachers clean

demo: $(INSTALLED)
	$(BIN)/python benchmarks/demo.py --output demo

# Two files of tests at a time, each on one core: training tiny models gains little from a second one.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --durations=25

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site that can be read without a server or a network: build/site/index.html.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The tables of README and docs, from the benchmarks whose commands stand there.
tables: $(INSTALLED)
	$(BIN)/python docs/embed_tables.py README.md docs/results.md docs/calibration.md docs/large-images.md \
		docs/edge.md docs/teachers.md docs/training-cost.md

# The packaged ResNet-18, as teachers/README.md describes it; called again it goes on. For a GPU.
PHOTOGRAPHS ?= ../shared/lab/photos.npz
IMAGENET ?= ../shared/weights/imagenet/resnet18.safetensors
teachers: $(INSTALLED)
	$(BIN)/python teachers/distill.py --photographs $(PHOTOGRAPHS) --weights $(IMAGENET) --layers 2 --output runs/teachers

$(INSTALLED): pyproject.toml packaging/edge/pyproject.toml constraints.txt src/anomalib_mixedteacher.pth src/_anomalib_mixedteacher_startup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable packaging/edge --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo results build dist
