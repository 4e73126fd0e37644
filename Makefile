# make run    start the portal on http://127.0.0.1:5000 (PORT=… and PORTAL_… in the environment change it)
# make test   lint, type check, and all tests on SQLite; then on PostgreSQL the tests whose outcome could depend on the
#             database. Those leave out rules, settings and logs, and whatever is marked `once`; of pages and API they
#             take what is marked `both`, and in the browser only the whole jobs
# make lint   only the linters and the type checker      make format   let them repair what they can
# make lock   pin the dependencies of pyproject.toml again (UPGRADE=1: to the newest)      make clean   remove .venv

VENV   := .venv
PY     := $(VENV)/bin/python
UV     := $(VENV)/bin/uv
UV_PIN := uv==0.13.9
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python3.14,$(shell \
            $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))

# A venv is whole once `.made` is there; one that an interruption or a removed Python left behind is made again.
NEED_VENV := $(shell test -x $(PY) -a -e $(VENV)/.made || echo venv)
# dev.lock holds run.lock pin for pin, so an environment that was set up for the tests also runs the portal.
ENV       := $(if $(wildcard $(VENV)/.dev),$(VENV)/.dev,$(VENV)/.run)

# One process more than the two cores of a small machine: a test with a browser waits a third of its time. Files go in
# the order in which tests/conftest.py puts them.
PYTEST       := $(PY) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder
MYPY         := $(PY) -m mypy --no-error-summary
COMPILE_LOCK := $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
                --no-emit-index-url $(if $(UPGRADE),--upgrade)

.PHONY: run test lint style types format lock clean venv chromium proxies
.NOTPARALLEL:
# Where this is set (many containers do), every start compiles every module anew, which takes longer than the start.
unexport PYTHONDONTWRITEBYTECODE

run: $(ENV)
	@exec $(PY) -m flask serve

# mypy has one thread and takes a minute where it has not been before: it goes beside the tests, and has its say after.
test: style chromium proxies
	@echo "mypy, and tests on SQLite"
	@said=$$(mktemp); $(MYPY) >"$$said" 2>&1 & types=$$!; $(PYTEST) --database=sqlite; tests=$$?; \
	    wait $$types; types=$$?; cat "$$said"; rm -f "$$said"; exit $$((tests + types))
	@echo "tests on PostgreSQL"
	@$(PYTEST) --database=postgresql

lint: style types

types: $(VENV)/.dev
	@echo "mypy"
	@$(MYPY)

style: $(VENV)/.dev
	@echo "ruff, djlint"
	@$(PY) -m ruff check -q .
	@$(PY) -m ruff format -q --check .
	@said=$$($(PY) -m djlint --check --lint templates 2>&1) || { echo "$$said"; exit 1; }

format: $(VENV)/.dev
	@$(PY) -m ruff check -q --fix .
	@$(PY) -m ruff format -q .
	@$(PY) -m djlint --quiet --reformat templates || true

lock: $(VENV)/.dev
	@echo "pinning requirements/dev.lock and requirements/run.lock"
	@$(COMPILE_LOCK) --group dev pyproject.toml -o requirements/dev.lock
	@$(COMPILE_LOCK) -c requirements/dev.lock pyproject.toml -o requirements/run.lock

clean:
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

venv:
	@test -n "$(PYTHON)" || { echo "The portal needs Python 3.11 or newer; none was found as python3, python3.11 …" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $(VENV)/.made

# uv is a few times faster than pip, and only that: where it cannot be had or fails, pip installs the same pins.
$(VENV)/.run: requirements/run.lock $(NEED_VENV)
$(VENV)/.dev: requirements/dev.lock $(NEED_VENV)
$(VENV)/.run $(VENV)/.dev:
	@echo "installing $<"
	@test -x $(UV) || $(PY) -m pip install -q --disable-pip-version-check "$(UV_PIN)" 2>/dev/null || true
	@{ test -x $(UV) && $(UV) pip sync -q --compile-bytecode --require-hashes --python $(PY) $<; } || \
	    { echo "with pip, uv did not do it"; $(PY) -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r $<; }
	@touch $@

# Playwright's own download of a browser comes from outside the package registries, so the distribution's is used.
# Without one the browser tests say that they are skipped; with CI=true they fail (tests/browser/conftest.py). Chromium
# without a window takes half the time of one with; where the distribution has no such package, the other one does.
chromium:
	@command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null || ! command -v apt-get >/dev/null || { \
	    echo "installing Chromium with apt"; \
	    as_root=$$(test "$$(id -u)" = 0 || echo sudo); $$as_root apt-get update -qq; \
	    for package in chromium-headless-shell chromium; do \
	        $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $$package fonts-dejavu-core \
	        >/dev/null && exit; done; echo "apt could not install Chromium" >&2; }

# The configurations in deploy/ are tried with the real programs (tests/test_deploy.py), with the same rule as above.
proxies:
	@{ command -v nginx >/dev/null || test -x /usr/sbin/nginx; } && command -v caddy >/dev/null || \
	    ! command -v apt-get >/dev/null || { echo "installing nginx and Caddy with apt"; \
	    as_root=$$(test "$$(id -u)" = 0 || echo sudo); $$as_root apt-get update -qq; \
	    $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends nginx-light caddy openssl \
	    >/dev/null || echo "apt could not install nginx and Caddy" >&2; }
