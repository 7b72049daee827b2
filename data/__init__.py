"""Images: reading them, cutting training patches, drawing student inputs, scoring benchmarks."""
