"""Our benchmarks: check first, then time, contestants interleaved, every round kept in one kind of file."""
