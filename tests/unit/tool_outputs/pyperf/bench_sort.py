"""What ``make.sh`` runs under pyperf."""

import pyperf

runner = pyperf.Runner(processes=2, values=3, warmups=1)
runner.timeit("sort", "sorted(range(100))")
runner.timeit("join", "''.join('abc')")
