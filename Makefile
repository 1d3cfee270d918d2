# make setup, once; then make test, make demo. `make help` lists the rest.
# Each part of the set-up leaves a stamp in build/, so a second call only looks at file times.

PYTHON ?= python3
VENV := .venv/bin

# gcc .. python3-venv: the C parts. flex .. xz-utils: the guest kernel. umoci and on: the tests.
PACKAGES := gcc make pkg-config libext2fs-dev e2fsprogs python3-dev python3-venv \
	flex bison bc libelf-dev xz-utils umoci skopeo \
	buildah docker-registry debootstrap openssl busybox-static cpio lz4 zstd acpica-tools \
	g++ libbenchmark-dev
FUZZ_PACKAGES := clang libclang-rt-dev
FUZZ_SECONDS ?= 1200
SOAK_SECONDS ?= 600
SOAK_MOMENTS ?= 100
ANALYZE_PACKAGES := clang-tidy
ACTIONLINT := github.com/rhysd/actionlint/cmd/actionlint@v1.7.7
KVMBOX_PACKAGES := qemu-system-x86

C_SOURCES := $(wildcard csrc/*.[ch] csrc/*.py rootfs/*.[ch] rootfs/*.py rootfs/kernel.config \
	init/*.[chS] init/Makefile pyvmm/policies/* pyvmm/seccomp.py) setup.py
KVMBOX_RECIPE := $(addprefix tests/kvmbox/,box.py box_init initramfs_init launcher)

.PHONY: help setup build kernels demo test lint analyze asan bench fuzz soak clean
.DELETE_ON_ERROR:

help:
	@echo 'setup   everything the others need: packages (as root), .venv, C parts, guest kernels,'
	@echo '        and the kvmbox where KVM cannot run Linux'
	@echo 'build   the C parts again, if they changed'
	@echo 'demo    run an image and show what comes back'
	@echo 'test    all tests        lint    ruff, mypy, clang-format'
	@echo 'analyze gcc -fanalyzer and clang-tidy'
	@echo 'asan    all tests with the address and undefined-behaviour sanitizers: an hour and more'
	@echo 'bench   measurements, beside QEMU'
	@echo 'fuzz    what reads images, and the devices, for FUZZ_SECONDS=$(FUZZ_SECONDS)'
	@echo 'soak    hostile kernels for SOAK_SECONDS=$(SOAK_SECONDS), SOAK_MOMENTS=$(SOAK_MOMENTS) killed runs'
	@echo 'clean   what was built in this directory; the cache stays'

setup: build/packages.stamp build build/kernels.stamp build/kvmbox.stamp
build: build/c.stamp
kernels: build/kernels.stamp

build/packages.stamp: Makefile
	@mkdir -p build
	@tests/packages.sh $(PACKAGES)
	@touch $@

build/venv.stamp: | build/packages.stamp
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pyvmm needs Python 3.11")'
	$(PYTHON) -m venv .venv
	$(VENV)/pip install --quiet --upgrade pip 'setuptools>=77' 'cffi>=1.17'
	@touch $@

# The linter of the GitHub Action: where there is go to build it; its test says so where there is not.
build/actionlint.stamp: Makefile
	@mkdir -p build
	@if command -v go >/dev/null; then GOBIN=$(CURDIR)/$(VENV) go install $(ACTIONLINT); fi
	@touch $@

# Without isolation, so that a rebuild downloads nothing; without setuptools' advice on editables.
build/c.stamp: $(C_SOURCES) pyproject.toml build/venv.stamp
	@echo 'building the C parts'
	@PYTHONWARNINGS=ignore $(VENV)/pip install --quiet --no-build-isolation --editable '.[dev,net,rich]'
	@touch $@

build/kernels.stamp: rootfs/kernel.config | build/c.stamp
	$(VENV)/pyvmm kernel fetch
	$(VENV)/pyvmm kernel build
	@touch $@

build/kvmbox.stamp: $(KVMBOX_RECIPE) | build/c.stamp build/kernels.stamp
	@if $(VENV)/pyvmm doctor --kvm-linux; then \
		echo 'This KVM runs Linux: no kvmbox needed.'; \
	else \
		tests/packages.sh $(KVMBOX_PACKAGES) && tests/kvmbox/run --build; \
	fi
	@touch $@

demo: setup
	@tests/demo.sh

test: setup
	@tests/run.sh

bench: setup
	@bench/run

soak: setup
	@tests/soak.sh $(SOAK_SECONDS) $(SOAK_MOMENTS)

fuzz: build build/fuzz.stamp
	@fuzz/run $(FUZZ_SECONDS)

build/fuzz.stamp: Makefile | build/venv.stamp
	@tests/packages.sh $(FUZZ_PACKAGES)
	@$(VENV)/pip install --quiet 'atheris>=3'
	@touch $@

asan: setup
	@tests/sanitized/run

analyze: build/analyze.stamp
	@tests/analyze.sh

build/analyze.stamp: Makefile | build/packages.stamp
	@tests/packages.sh $(ANALYZE_PACKAGES)
	@touch $@

lint: build build/actionlint.stamp
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/clang-format --dry-run --Werror $(filter-out csrc/_% rootfs/_%,\
		$(wildcard csrc/*.[ch] rootfs/*.[ch] init/*.[ch] fuzz/*.[ch] tests/*/*.c))

clean:
	rm -rf build .venv *.egg-info pyvmm/_data pyvmm/*.so csrc/_core.c rootfs/_ext4.c
	$(MAKE) -C init clean
