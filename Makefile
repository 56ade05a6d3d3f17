PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: sweep check test soak gpu

# Tests that need neither Slurm nor training.
QUICK = tests/test_house.py tests/test_sweeps.py tests/eval/test_domain_pairs.py tests/jobs/test_clusters.py \
	tests/jobs/test_status.py $(addprefix tests/trainer/test_,checkpoint.py config.py data.py domain_pairs.py \
	files.py own.py sweep.py)

sweep: $(VENV)/installed
	$(BIN)/python jobs/submit.py sweeps/dann.yaml

# Two workers and the processes that they start share the cores: threads of each would wait for those of the others.
check test: export OMP_NUM_THREADS = 1
check test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(if $(filter check,$@),-q $(QUICK))

# Every night: random events in 40 trials and in a search on a private Slurm, all scenarios of faults, long trainings.
soak: export TURNOUT_RANDOM_TRIALS ?= 40
soak: export TURNOUT_TEST_LONG ?= 1
soak: export OMP_NUM_THREADS ?= 1
soak: $(VENV)/installed-test
	$(BIN)/python -m pytest -q -rA tests/slurm/test_random_faults.py tests/slurm/test_faults.py tests/slurm/test_search.py \
		tests/test_learning.py

# What a machine with one GPU shows in 8 minutes, with the packages that it has: nothing is installed or downloaded.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest -q -rA -W default -p no:cacheprovider tests/gpu

$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install -q -e '.[test]'
	touch $@
