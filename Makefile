# make demo and make test do all their set-up themselves (as root, on Debian 12 with a Rust toolchain).

PREFIX ?= /usr/local
# Where images, the registry's storage and reports are kept between runs.
export TOWLINE_WORK ?= /var/tmp/towline-demo
CARGO ?= $(shell command -v cargo || echo $$HOME/.cargo/bin/cargo)
export CARGO

TARGET := $(or $(CARGO_TARGET_DIR),target)
STATIC_TRIPLE := $(shell uname -m)-unknown-linux-gnu
RELEASE := $(TARGET)/release
RELEASE_OCI := $(TARGET)/$(STATIC_TRIPLE)/oci/towline-oci
RELEASE_SHIM := $(TARGET)/$(STATIC_TRIPLE)/oci/containerd-shim-towline-v2

# towline-oci runs before any library of the host is trusted, and inside microVMs: it is static. At a fixed address: relocating
# itself would cost each start page faults and memory.
OCI_STATIC := RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' LIBSECCOMP_LINK_TYPE=static \
	LIBSECCOMP_LIB_PATH=$(shell pkg-config --variable=libdir libseccomp 2>/dev/null || echo /usr/lib/$(shell uname -m)-linux-gnu)

# What `towline-oci --version` says; empty outside of a clone.
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
$(if $(COMMIT),$(eval export TOWLINE_COMMIT := $(COMMIT)))

RUNS ?= 5

.PHONY: help demo test fuzz bench bench-runtime bench-shim bench-podman bench-containerd bench-images bench-large bench-lazy build man install deps images testbed lint clean

help:
	@echo "make demo                 build, make a local registry with a real image, and show a lazy start beside a full pull"
	@echo "make test                 lint and all tests; needs root for the end-to-end part ($(TOWLINE_WORK) keeps the images)"
	@echo "make bench RUNS=5         first output of a lazy start against the physical limit and a full pull"
	@echo "make bench-lazy IMAGES='redis python' RATE=100 RUNS=3   starts of real images beside containerd, podman and the limit"
	@echo "make bench-large RUNS=5   reading one file of 1 GiB, all local, against plain overlayfs"
	@echo "make bench-runtime RUNS=40  start, exec and memory of towline-oci beside runc, crun, youki and the floor"
	@echo "make fuzz                 libFuzzer on the runtime's parsers, SECONDS_EACH=10 for each target"
	@echo "make bench-podman IMAGES='redis python' RUNS=5   podman with the layer store beside towline run and podman as ever"
	@echo "make bench-containerd IMAGES='redis python' RUNS=5   containerd with towlined's snapshotter and our shim beside towline run"
	@echo "make bench-shim RUNS=40   ctr run through our shim beside containerd's own with runc, and the memory of both"
	@echo "make build                release binaries: $(RELEASE)/{towline,towlined}, $(RELEASE_OCI), $(RELEASE_SHIM)"
	@echo "make man                  man pages and shell completions: $(RELEASE)/share"
	@echo "make install PREFIX=DIR   install all of that into DIR/bin and DIR/share (default /usr/local)"
	@echo "make deps                 install missing Debian packages"
	@echo "make images               registry storage $(TOWLINE_WORK)/registry with {small,odd,python}:{gzip,zstd};"
	@echo "                          OCI layouts oci:$(TOWLINE_WORK)/oci/{small,odd,python}:{gzip,zstd}"
	@echo "make bench-images         six larger images for the bench of lazy starts, the same way below $(TOWLINE_WORK)/bench"
	@echo "make testbed              the test machine (integration/testbed): a kernel and systemd for QEMU, below $(TOWLINE_WORK)"
	@echo "make lint                 rustfmt and clippy, warnings are errors"

demo: deps build images
	@bash integration/demo/demo.sh '$(RELEASE)' '$(RELEASE_OCI)'

test: deps
	@bash integration/test.sh

# Release binaries; the same measurement is part of `make test`, there with debug binaries and one run.
bench: build images
	@install -d '$(TARGET)/bench'
	@install -m 0755 '$(RELEASE)/towline' '$(RELEASE)/towlined' '$(RELEASE_OCI)' '$(TARGET)/bench/'
	TOWLINE_BENCH_RUNS=$(RUNS) TOWLINE_BIN_DIR='$(abspath $(TARGET))/bench' \
		$(CARGO) test -p towline-integration --test lazy -- start:: --nocapture

# The peers are those that are installed; the report is $(TOWLINE_WORK)/reports/runtime.txt.
bench-runtime: RUNS = 40
bench-runtime: deps
	$(CARGO) build -p towline-integration --bin bench-runtime
	$(OCI_STATIC) $(CARGO) build --profile oci -p towline-runtime --target $(STATIC_TRIPLE)
	'$(TARGET)/debug/bench-runtime' '$(RELEASE_OCI)' '$(RUNS)'

# Needs containerd and runc. The report is $(TOWLINE_WORK)/reports/shim.txt.
bench-shim: RUNS = 40
bench-shim: deps
	$(CARGO) build -p towline-integration --bin bench-shim
	$(OCI_STATIC) $(CARGO) build --profile oci -p towline-runtime -p towline-shim --target $(STATIC_TRIPLE)
	'$(TARGET)/debug/bench-shim' '$(RELEASE_SHIM)' '$(RUNS)'

bench-large: build
	@RUNS='$(RUNS)' bash integration/bench/lazy/large.sh '$(RELEASE)' '$(RELEASE_OCI)'

# Needs bench-images. The report is $(TOWLINE_WORK)/bench/reports/lazy-$(RATE).txt.
RATE ?= 100
RTT ?= 10
CROWD ?= 50
bench-lazy: RUNS = 3
bench-lazy: IMAGES = $(BENCH_IMAGES)
bench-lazy: build
	@RATE='$(RATE)' RTT='$(RTT)' RUNS='$(RUNS)' CROWD='$(CROWD)' bash integration/bench/lazy/bench.sh '$(RELEASE)' '$(RELEASE_OCI)' $(IMAGES)

# Needs bench-lazy once for each image. The report is $(TOWLINE_WORK)/bench/reports/podman-$(RATE).txt.
bench-podman: IMAGES = redis python
bench-podman: build
	@RATE='$(RATE)' RTT='$(RTT)' RUNS='$(RUNS)' bash integration/bench/podman/bench.sh '$(RELEASE)' '$(RELEASE_OCI)' $(IMAGES)

# The same for containerd; also needs busybox. The report is $(TOWLINE_WORK)/bench/reports/containerd-$(RATE).txt.
bench-containerd: IMAGES = $(BENCH_IMAGES)
bench-containerd: build
	@RATE='$(RATE)' RTT='$(RTT)' RUNS='$(RUNS)' bash integration/bench/containerd/bench.sh '$(RELEASE)' '$(RELEASE_OCI)' $(IMAGES)

build:
	$(CARGO) build --release -p towline-lazyfs -p towline-image-tools -p towline-integration --bins
	$(OCI_STATIC) $(CARGO) build --profile oci -p towline-runtime -p towline-shim --target $(STATIC_TRIPLE)

# From the tables of flags that the programs parse with. The crates are those of `build`, so that nothing is compiled with other features.
man:
	$(CARGO) build --release -p towline-lazyfs -p towline-image-tools -p towline-integration --example pages
	'$(RELEASE)/examples/pages' '$(RELEASE)/share'

install: build man
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/share'
	cp -R '$(RELEASE)/share/.' '$(DESTDIR)$(PREFIX)/share/'
	install -m 0755 '$(RELEASE)/towline' '$(RELEASE)/towlined' '$(RELEASE_OCI)' '$(RELEASE_SHIM)' '$(DESTDIR)$(PREFIX)/bin/'

deps:
	@bash contrib/install-deps.sh

images: deps
	@bash integration/images/build.sh

# Six images of real servers and programs for the bench of lazy starts; `make bench-images-redis` builds one of them.
BENCH_IMAGES := redis nginx node python java postgres

bench-images: deps
	@TOWLINE_WORK='$(TOWLINE_WORK)/bench' TOWLINE_RECIPES=integration/bench/images bash integration/images/build.sh $(BENCH_IMAGES)

$(BENCH_IMAGES:%=bench-images-%): bench-images-%: deps
	@TOWLINE_WORK='$(TOWLINE_WORK)/bench' TOWLINE_RECIPES=integration/bench/images bash integration/images/build.sh $*

testbed: deps
	@bash integration/testbed/build.sh

# Fuzz targets of the runtime's parsers, with the stable compiler; part of `make test`.
fuzz:
	@bash runtime/fuzz/run.sh

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

clean:
	$(CARGO) clean
