"""What makes and tries the container image: `python -m docker.build`. A regular package, so that it hides no other of
its name from a checkout's own commands."""
