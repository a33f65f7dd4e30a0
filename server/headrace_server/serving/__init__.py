"""Use cases: what happens to a request between its parsing and its engine. Knows no HTTP."""
