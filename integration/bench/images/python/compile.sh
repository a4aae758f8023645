# Sourced after install.sh by layers with python modules.
# Compiled modules that are valid whatever time stamps the image's files get: buildah sets them all to one, and every start of python would
# compile its sources again. Sources that are no Python (templates, tests of old syntax) are left out, which compileall calls a failure.
compile_python() { # PATH...
    in_image python3 -m compileall -q -f --invalidation-mode unchecked-hash "$@" > compile.log || true
    rm compile.log
}
