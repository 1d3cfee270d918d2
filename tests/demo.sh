#!/bin/sh
# A small image from Debian's busybox, run with pyvmm: its output, exit code and the phases' times.
# `make demo` calls it after the set-up.
set -eu
cd "$(dirname "$0")/.."
image=build/demo-image
.venv/bin/python tests/guest/demo_image.py "$image"
set -- --image "$image" --timeline -- sh -c '
    echo "Hello from Linux $(uname -r), $(nproc) CPU, process $$ of user $(id -un)."
    exit 42'
if why=$(.venv/bin/pyvmm doctor --kvm-linux 2>&1); then
    echo 'This KVM runs Linux: running natively.'
    pyvmm=.venv/bin/pyvmm
else
    echo "In the kvmbox, because ${why#pyvmm: }."
    pyvmm='tests/kvmbox/run -- pyvmm'
fi
echo "\$ pyvmm run --image $image --timeline -- sh -c 'echo Hello …; exit 42'"
code=0
$pyvmm run "$@" || code=$?
echo "exit code $code"
[ "$code" = 42 ]
