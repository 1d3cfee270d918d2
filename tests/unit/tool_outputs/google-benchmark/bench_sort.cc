// What make.sh runs under Google Benchmark.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

static void BM_Sort(benchmark::State &state)
{
	std::vector<int> numbers(state.range(0));
	for (auto _ : state) {
		std::iota(numbers.rbegin(), numbers.rend(), 0);
		std::sort(numbers.begin(), numbers.end());
		benchmark::DoNotOptimize(numbers.data());
	}
	state.SetItemsProcessed(state.iterations() * state.range(0));
	state.SetBytesProcessed(state.iterations() * state.range(0) * sizeof(int));
	state.counters["swaps"] = static_cast<double>(state.range(0)) / 2;
}
BENCHMARK(BM_Sort)->Arg(8)->Arg(64);

static void BM_Copy(benchmark::State &state)
{
	std::string text(100, 'x');
	for (auto _ : state) {
		std::string copy = text;
		benchmark::DoNotOptimize(copy);
	}
}
BENCHMARK(BM_Copy)->Unit(benchmark::kMicrosecond);

static void BM_Fails(benchmark::State &state)
{
	state.SkipWithError("no device");
	for (auto _ : state) {
	}
}

int main(int argc, char **argv)
{
	if (argc > 1 && std::string(argv[argc - 1]) == "fails")
		benchmark::RegisterBenchmark("BM_Fails", BM_Fails);
	benchmark::Initialize(&argc, argv);
	benchmark::RunSpecifiedBenchmarks();
	return 0;
}
