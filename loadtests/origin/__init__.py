"""A throttled origin of model files that fails on request: what the model cache is tested and measured against.

It serves the same directories as plain files, as an OCI registry, as an S3 bucket and as a Hugging Face hub, over one
shared link of a given speed, and counts what it really wrote. `server.running_origin` runs it in threads of a test,
`remote.origin_process` as a process of its own (`python -m loadtests.origin`).
"""
