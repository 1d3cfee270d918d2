"""What on this host disturbs a benchmark, and setting it, with a way back."""
