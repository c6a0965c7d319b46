"""Published benchmarks: test questions alone, scored by their own rules (`evaluate/benchmarks`)."""
