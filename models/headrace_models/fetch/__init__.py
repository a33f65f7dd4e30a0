"""Bring a model's bytes into the store: what to fetch next (`plan`), how (`fetcher`), from a reference to a sealed
model (`session`), as a child process (`__main__`, `client`) that tells its parent how it goes (`events`)."""
