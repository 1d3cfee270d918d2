// A second package, with a benchmark of the same name.
package other

import (
	"fmt"
	"testing"
)

func BenchmarkSprint(b *testing.B) {
	for i := 0; i < b.N; i++ {
		_ = fmt.Sprint(i, i)
	}
}
