"""A benchmark for the image of benchmark_images.py, where it is test_speed.py."""


def test_sum(benchmark):
    assert benchmark.pedantic(sum, (range(1000),), rounds=5, iterations=2) == 499500
