#!/bin/sh
# soak.sh SECONDS MOMENTS: what is too long for `make test`. Hostile kernels with new seeds for so
# many seconds; then so many runs of Linux that are killed, here or in the kvmbox.
cd "$(dirname "$0")/.." || exit
bin=$PWD/.venv/bin
"$bin/python" tests/guest/make_images.py build/guest-images || exit
failed=

"$bin/python" tests/kvm/soak.py "$1" || failed=yes
if why=$("$bin/pyvmm" doctor --kvm-linux 2>&1); then
    "$bin/python" tests/soak.py "$2" || failed=yes
else
    echo "$why"
    # -P: the installed pyvmm, not the checkout's folder
    tests/kvmbox/run --timeout $((60 + 60 * $2)) -- python3 -P tests/soak.py "$2" || failed=yes
fi
[ -z "$failed" ]
