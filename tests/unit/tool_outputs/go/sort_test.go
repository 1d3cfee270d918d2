// What make.sh runs under Go's testing.
package sorting

import (
	"fmt"
	"sort"
	"testing"
)

func BenchmarkSort(b *testing.B) {
	for _, size := range []int{10, 1000} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size * 8))
			for i := 0; i < b.N; i++ {
				numbers := make([]int, size)
				for n := range numbers {
					numbers[n] = size - n
				}
				sort.Ints(numbers)
			}
			b.ReportMetric(float64(size)/2, "swaps/op")
		})
	}
}

func BenchmarkSprint(b *testing.B) {
	for i := 0; i < b.N; i++ {
		_ = fmt.Sprint(i)
	}
}
