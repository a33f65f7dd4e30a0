"""Makes the embedded models that the image holds: `prepare_models.py FOLDER`. Runs inside the build."""

import shutil
import sys
from pathlib import Path

from headrace_models.embedded import EMBEDDED_MODELS
from headrace_models.preparation import embedded_directory, prepare
from headrace_models.reference import parse_reference


def main() -> None:
    """Prepare every embedded model into the folder, laid out as in a cache, and leave nothing but them."""
    folder = Path(sys.argv[1])
    for model in EMBEDDED_MODELS:
        prepare(parse_reference(f"embedded:{model.name}"), folder, on_progress=print)
    kept = {embedded_directory(model, folder) for model in EMBEDDED_MODELS}
    for path in (folder / "embedded").iterdir():
        if path not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
