#!/bin/sh
# All tests: unit tests and tiny guests here, then Linux guests here or, where this host's KVM cannot
# run Linux, in the kvmbox. `make test` calls it after the set-up. Arguments go to the guest tests.
cd "$(dirname "$0")/.." || exit
bin=$PWD/.venv/bin
images=build/guest-images
failed=

part() { # NAME COMMAND...: run it, and remember if it failed
    name=$1
    shift
    echo "== $name"
    "$@" || failed="$failed, $name"
}

part 'unit tests and tiny guests' "$bin/pytest" -q tests/unit tests/kvm tests/registry
"$bin/python" tests/guest/make_images.py "$images" || exit

if why=$("$bin/pyvmm" doctor --kvm-linux 2>&1); then
    part 'Linux guests' "$bin/pytest" -v tests/guest "$@"
else
    echo "$why"
    part 'this host' "$bin/pytest" -q tests/guest/test_host_errors.py tests/guest/test_placement.py \
        -k 'host_errors or pins'
    # -P: the installed pyvmm, not the checkout's folder
    part 'Linux guests in the kvmbox' tests/kvmbox/run --timeout 3600 -- \
        python3 -P -m pytest -p no:cacheprovider -v tests/guest "$@"
fi

[ -z "$failed" ] && exit
echo "failed: ${failed#, }" >&2
exit 1
