#!/bin/bash
# `make test`: lint, build, images, all tests; each stage has a time limit. Ends with one line
# "N passed, N failed, N skipped", after each skip with its reason. Exit 0 only if every stage succeeded.
#
# A test that cannot run here prints a line "SKIP <test>: <reason>" and returns; it counts as skipped, not as passed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
cargo=${CARGO:-cargo}
export TOWLINE_WORK=${TOWLINE_WORK:-/var/tmp/towline-demo}
target=${CARGO_TARGET_DIR:-$PWD/target}
log=$target/test.log
export TOWLINE_BIN_DIR=$target/debug
mkdir -p "$target"
: > "$log"
failed_stages=()

# Runs a command as its own process group, so that a time-out ends all of it.
stage() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    echo "=== $name"
    timeout --kill-after=30 "$limit" "$@" 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    [ "$status" != 124 ] && [ "$status" != 137 ] || echo "towline: stage '$name' was stopped after its $limit s"
    echo "=== $name: $((SECONDS - start)) s, exit $status"
    [ "$status" = 0 ] || failed_stages+=("$name")
    return "$status"
}

# A flag for each suite of these crates. With -p cargo would settle on other features of the dependencies than for the workspace, and compile
# half of them again.
suites() { # FOLDER...
    local test
    for test in "${@/%//tests}"; do
        for test in "$test"/*.rs "$test"/*/main.rs; do
            [ ! -e "$test" ] || { test=${test%/main.rs} test=${test##*/} && echo "--test ${test%.rs}"; }
        done
    done
}

summary() {
    awk -v stages="${failed_stages[*]:-}" '
        /^test result: / {
            for (i = 1; i <= NF; i++) {
                if ($i ~ /^passed/) passed += $(i - 1)
                if ($i ~ /^failed/) failed += $(i - 1)
                if ($i ~ /^ignored/) skipped += $(i - 1)
            }
        }
        / \.\.\. ignored/ { skips[++n] = $0 }
        /^SKIP / { skips[++n] = $0; skipped++; passed-- }
        /^test .* \.\.\. FAILED/ { failures[++f] = $2 }
        # What a test printed: of those that failed the beginning is shown again at the end, where whoever reads a log looks first,
        # without stack traces, which would leave no room for anything else.
        /^---- .* stdout ----/ { name = $2; lines[name] = 0; next }
        /^(failures|successes):$/ || /^test result: / { name = "" }
        /^ +([0-9]+: |at )|^stack backtrace:$|^note: .*RUST_BACKTRACE/ { next }
        name != "" && lines[name] < 80 { printed[name] = printed[name] "    " substr($0, 1, 400) "\n"; lines[name]++ }
        END {
            for (i = 1; i <= n; i++) print skips[i]
            for (i = 1; i <= f; i++) printf "FAILED %s\n%s", failures[i], printed[failures[i]]
            if (stages != "") print "failed stages: " stages
            printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
        }' "$log"
}

stage 'formatting' 120 "$cargo" fmt --all --check
stage 'clippy' 1500 "$cargo" clippy --quiet --workspace --all-targets -- -D warnings
if stage 'build' 1500 "$cargo" build --workspace --bins && stage 'build tests' 1500 "$cargo" test --quiet --workspace --no-run; then
    stage 'library tests' 1200 "$cargo" test --workspace --lib --bins $(suites runtime lazyfs shim image-tools) --no-fail-fast -- --show-output
    stage 'examples of the documentation' 600 "$cargo" test --quiet --workspace --doc --no-fail-fast
    stage 'fuzz targets' 1200 bash runtime/fuzz/run.sh
    images=0
    [ "$(id -u)" != 0 ] || stage 'images' 1800 bash integration/images/build.sh || images=$?
    [ "$(id -u)" != 0 ] || stage 'test machine' 600 bash integration/testbed/build.sh
    # Container tests share the machine's mounts, cgroups and its two or so cores: one at a time.
    [ "$images" != 0 ] ||
        stage 'end-to-end tests' 3300 "$cargo" test --workspace $(suites integration) --no-fail-fast -- --show-output --test-threads=1
fi

summary
[ ${#failed_stages[@]} = 0 ]
