// What make.sh runs under Criterion.
use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::time::Duration;

fn bench(c: &mut Criterion) {
    c.bench_function("reverse", |b| b.iter(|| black_box([3, 2, 1, 0]).reverse()));
    let mut group = c.benchmark_group("sort");
    for size in [10u64, 1000] {
        group.throughput(Throughput::Bytes(size * 8));
        group.bench_with_input(BenchmarkId::new("unstable, from the far end", size), &size, |b, &n| {
            b.iter(|| {
                let mut numbers: Vec<u64> = (0..n).rev().collect();
                numbers.sort_unstable();
                numbers
            })
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(100));
    targets = bench
}
criterion_main!(benches);
