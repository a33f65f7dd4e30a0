"""The rows of `bench_fair`: who waits how long where several tenants want more than there is."""
