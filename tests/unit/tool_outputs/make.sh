#!/bin/sh
# Makes the outputs in this directory again, by the tools themselves; tests/unit/test_adapters.py
# then wants its numbers changed. What names a machine or its paths is taken out, nothing else.
#
# Made with: pytest-benchmark 5.3.1, pyperf 2.10.0 (PyPI); hyperfine 1.15.0, Google Benchmark 1.7.1
# (Debian 12: hyperfine libbenchmark-dev g++); Criterion 0.8.2 (crates.io, cargo 1.95); Go 1.26;
# JMH 1.37 (Maven Central, OpenJDK 17). bmf/results.json is written by hand: the format has no tool.
# Usage: make.sh [TOOL…]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CARGO_TARGET_DIR="$work/target" PYTHONDONTWRITEBYTECODE=1

# clean FILE…: no host names, kernels and paths of the machine that this ran on
clean() {
	sed -i -e "s|$work|/work|g" -e "s|$here|/source|g" -e "s|\"$(hostname)\"|\"host\"|g" \
		-e "s|$(uname -r)|6.1.0|g" -e "s|\"$(basename "$work")\"|\"work\"|g" \
		-e 's|"python_config_args":"[^"]*",||' "$@"
}

venv() {
	[ -d "$work/venv" ] || {
		python3 -m venv "$work/venv"
		"$work/venv/bin/pip" install -q pytest-benchmark==5.3.1 pyperf==2.10.0
	}
}

pytest_benchmark() {
	venv
	cp "$here/pytest-benchmark/bench_sort.py" "$work"
	cd "$work" # where it finds no commit to name
	"$work/venv/bin/pytest" -q -p no:cacheprovider --rootdir=. bench_sort.py \
		--benchmark-json="$here/pytest-benchmark/raw.json" --benchmark-save=saved
	cd "$here/pytest-benchmark"
	mv "$work"/.benchmarks/*/*saved.json saved.json # as raw.json, without the rounds' times
	clean raw.json saved.json
}

pyperf() {
	venv
	cd "$here/pyperf"
	rm -f results.json
	"$work/venv/bin/python" bench_sort.py -q -o results.json
	clean results.json
}

hyperfine() {
	cd "$here/hyperfine"
	command hyperfine -N --runs 5 --style none --export-json results.json true 'sleep 0.001'
	command hyperfine -N --runs 3 --style none --export-json scan.json \
		-L seconds 0.001,0.002 -n pause 'sleep {seconds}'
	clean results.json scan.json
}

google_benchmark() {
	cd "$here/google-benchmark"
	g++ -O2 bench_sort.cc -o "$work/sort" -lbenchmark -lpthread
	set -- --benchmark_min_time=0.01
	"$work/sort" "$@" --benchmark_format=json >results.json 2>/dev/null
	"$work/sort" "$@" --benchmark_format=json --benchmark_repetitions=3 >repetitions.json 2>/dev/null
	"$work/sort" "$@" --benchmark_format=json --benchmark_repetitions=3 \
		--benchmark_report_aggregates_only >aggregates.json 2>/dev/null
	"$work/sort" "$@" --benchmark_format=json fails >fails.json 2>/dev/null
	"$work/sort" "$@" --benchmark_repetitions=2 >console.txt 2>/dev/null
	clean ./*.json
}

criterion() {
	cd "$here/criterion"
	rm -rf output
	cargo bench -q >/dev/null 2>&1
	cargo bench -q >stdout.txt 2>/dev/null # the second time it also prints what changed
	(cd "$work/target/criterion" && find . -path '*/new/*' -name '*.json') | while read -r path; do
		mkdir -p "$(dirname "output/$path")"
		cp "$work/target/criterion/$path" "output/$path"
	done
	rm -f Cargo.lock
}

go() {
	cd "$here/go"
	command go test -run '^$' -bench . -benchtime 200x -count 3 -benchmem . >one.txt
	command go test -run '^$' -bench Sprint -benchtime 200x ./... >two.txt
}

jmh() {
	cp -r "$here/jmh" "$work/jmh"
	cd "$work/jmh"
	mvn -q compile dependency:copy-dependencies
	java -cp 'target/classes:target/dependency/*' org.openjdk.jmh.Main -prof gc -v SILENT -rf json \
		-rff "$here/jmh/results.json"
	clean "$here/jmh/results.json"
}

[ $# != 0 ] || set -- pytest_benchmark pyperf hyperfine google_benchmark criterion go jmh
for tool; do
	"$tool"
done
