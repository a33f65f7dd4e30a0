"""The rows of `bench_swap`: what it costs to start, swap, lose and share engines, beside vLLM's own server."""
