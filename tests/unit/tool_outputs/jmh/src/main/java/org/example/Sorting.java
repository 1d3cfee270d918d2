// What make.sh runs under JMH.
package org.example;

import java.util.Arrays;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.*;

@State(Scope.Thread)
@Fork(2)
@Warmup(iterations = 1, time = 20, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 2, time = 20, timeUnit = TimeUnit.MILLISECONDS)
public class Sorting {
    @Param({"10", "1000"})
    int size;

    @Benchmark
    @BenchmarkMode({Mode.AverageTime, Mode.Throughput})
    @OutputTimeUnit(TimeUnit.MICROSECONDS)
    public int[] sort() {
        int[] numbers = new int[size];
        for (int n = 0; n < size; n++)
            numbers[n] = size - n;
        Arrays.sort(numbers);
        return numbers;
    }
}
