#!/bin/bash
# Builds the fuzz targets with a stable compiler and runs each for SECONDS_EACH (10) seconds. A crash ends it with an error; the
# input that caused it is kept in the directory that is named then.
set -euo pipefail
seconds=${SECONDS_EACH:-10}
target=$(realpath -m "${CARGO_TARGET_DIR:-$(dirname "$0")/../../target}")/fuzz
cd "$(dirname "$0")"
# What cargo-fuzz passes, as far as a stable compiler takes it: coverage, without sanitizers (there is no unsafe code in the parsers).
export RUSTFLAGS="--cfg fuzzing -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
-C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
-C llvm-args=-sanitizer-coverage-trace-compares -C codegen-units=1"
triple=$(rustc -vV | sed -n 's/^host: //p')
# With --target, build scripts and macros are built without these flags.
"${CARGO:-cargo}" build --release --target "$triple" --target-dir "$target"
for name in config message record hierarchies seccomp; do
    corpus=$target/corpus/$name
    mkdir -p "$corpus"
    case $name in
        config) cp ../../integration/bench/runtime/podman-config.json "$corpus/podman" ;;
        record) cp ../tests/golden/state.json "$corpus/golden" ;;
    esac
    echo "=== fuzz target $name"
    (cd "$target" && timeout --kill-after=5 $((seconds + 60)) "$target/$triple/release/$name" -max_total_time="$seconds" -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="$target/crash-$name-" "$corpus" 2>&1 | grep -vE '^#|NEW|REDUCE|pulse|# Uses:' | tail -15)
done
