#!/bin/sh
# gcc's analyzer and clang-tidy (.clang-tidy) over all C that is ours. Prints what they find.
# A file a process: clang-tidy 14 remembers things of one file that are not so in the next.
# Without optimization, which takes findings along with the code they are in. Not
# -Wanalyzer-malloc-leak: gcc 12 takes what is put into a list for lost. clang's stays on.
set -u
cd "$(dirname "$0")/.." || exit

analyze() { # FILE FLAG...
    file=$1
    shift
    flags="-std=c11 -Wall -Wextra -Wno-missing-field-initializers -Wno-unused-parameter $*"
    # shellcheck disable=SC2086 # lists
    gcc $flags -fanalyzer -Wno-analyzer-malloc-leak -Werror -c -o /dev/null "$file" &&
        clang-tidy --quiet "$file" -- $flags 2>/dev/null
}

if [ $# -gt 0 ]; then
    case $1 in
    init/*) analyze "$1" -ffreestanding ;;
    *) analyze "$1" -D_GNU_SOURCE ;;
    esac
    exit
fi
# shellcheck disable=SC2046 # a list; of what cffi makes none
printf '%s\n' csrc/*.c rootfs/*.c init/*.c | grep -v '/_' | xargs -P "$(nproc)" -n 1 "tests/$(basename "$0")"
