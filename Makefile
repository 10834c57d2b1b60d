# Everything a newcomer needs: `make demo` and `make test`. Both make their own environment first.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
WANTED := requirements.txt tests/requirements.txt
READY := $(VENV)/.ready

.PHONY: demo test lint help

help:
	@echo "make demo   train an adaptive ResNet-18 on the bundled digits, compare its 16 sub-networks"
	@echo "make test   the whole test suite"
	@echo "make lint   ruff"

$(READY): $(WANTED)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check $(addprefix -r ,$(WANTED))
	touch $@

test: $(READY)
	$(RUN) -m pytest -n auto --maxprocesses 4

lint: $(READY)
	$(VENV)/bin/ruff check .

demo: $(READY)
	$(RUN) tools/demo.py
