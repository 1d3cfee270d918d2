// A Google Benchmark program that is done in no time, for the image of benchmark_images.py.
#include <benchmark/benchmark.h>

static void BM_sum(benchmark::State &state)
{
	for (auto _ : state) {
		int sum = 0;
		for (int i = 0; i < state.range(0); i++)
			benchmark::DoNotOptimize(sum += i);
	}
}
BENCHMARK(BM_sum)->Arg(10)->Arg(1000)->Iterations(100);

BENCHMARK_MAIN();
