"""`headrace rm` and `headrace verify`: take models out of the cache, look whether it still holds what was put there.

Names are all resolved before anything is done. A model that cannot be handled is one line on standard error, the others
are handled all the same, and the exit code is 1.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import typer

from headrace_models import ModelError, ModelNotFound
from headrace_models.store.integrity import IntegrityReport
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_server.catalog import cache_directory
from headrace_server.cli.embedded_directories import prepared_directory, problem_of, remove_prepared
from headrace_server.cli.model_names import key_named, open_store
from headrace_server.cli.progress_display import open_display, size_text
from headrace_server.settings.loading import load_settings

EXIT_FAILED = 1


def remove_models(names: Sequence[str], config: Path | None) -> int:
    """Remove models and say how many bytes that freed. Returns the exit code.

    Raises:
        UsageError: a name could mean several models.
        ModelNotFound: nothing of a name is there; then nothing is removed.
    """
    settings = load_settings(config=config)
    store, cache_dir = open_store(settings), cache_directory(settings.cache)
    if store is None:
        raise ModelNotFound(f"the model cache {cache_dir} is empty")
    keys = [key_named(name, settings, store) for name in names]
    return _for_each(keys, partial(_remove, store, cache_dir))


def verify_models(names: Sequence[str], config: Path | None, *, repair: bool) -> int:
    """Check every byte of the named models, of all without names. Returns the exit code: 1 where anything is wrong.

    Raises:
        UsageError: a name could mean several models.
        ModelNotFound: nothing of a name is there.
    """
    settings = load_settings(config=config)
    store, cache_dir = open_store(settings), cache_directory(settings.cache)
    if store is None:
        if names:
            raise ModelNotFound(f"the model cache {cache_dir} is empty")
        return 0
    keys = [key_named(name, settings, store) for name in names] or _all_keys(store)
    return _for_each(keys, partial(_verify, store, cache_dir, repair=repair))


def _for_each(keys: Iterable[str], work: Callable[[str], bool]) -> int:
    """Do it for every model once; the exit code."""
    failed = [key for key in dict.fromkeys(keys) if not _was_done(key, work)]
    return EXIT_FAILED if failed else 0


def _was_done(key: str, work: Callable[[str], bool]) -> bool:
    try:
        return work(key)
    except ModelError as error:
        _complain(str(error))
    except OSError as error:
        _complain(f"{key}: {error.strerror or error}")
    return False


def _all_keys(store: ModelStore) -> list[str]:
    return sorted([model.key for model in store.models()] + [key for key, _why in store.damaged()])


def _remove(store: ModelStore, cache_dir: Path, key: str) -> bool:
    reference = _reference(store, key)
    freed_bytes = store.remove(key)
    directory = prepared_directory(reference, cache_dir)
    if directory is not None:
        freed_bytes += remove_prepared(directory, reference.partition(":")[2])
    typer.echo(f"removed {key}{f' ({reference})' if reference else ''}: {size_text(freed_bytes)} freed")
    return True


def _reference(store: ModelStore, key: str) -> str:
    """Of a damaged model, which can be removed too, it is not known."""
    try:
        return store.open_key(key).reference
    except ModelError:
        return ""


def _verify(store: ModelStore, cache_dir: Path, key: str, *, repair: bool) -> bool:
    model = store.open_key(key)
    with open_display(key) as display:
        report = model.check_integrity(repair=repair, on_progress=display.show)
    problems = list(problems_of(model, report))
    directory = prepared_directory(model.reference, cache_dir)
    if directory is not None and (problem := problem_of(directory)) is not None:
        problems.append(f"{problem}; headrace rm {model.reference}, and it is made again")
    for problem in problems:
        _complain(f"{key}: {problem}")
    if not problems:
        holds = "every file has its digest" if directory is not None else _what_holds(model, report)
        typer.echo(f"{key} ({model.reference}): {holds}")
    return not problems


def problems_of(model: StoredModel, report: IntegrityReport) -> Iterator[str]:
    """A line for each thing that is wrong, and what happened to it."""
    dropped = "dropped, headrace pull brings it again" if report.repaired else "left as it is"
    for path in report.wrong_sizes:
        yield f"{path} has another size than it should ({dropped})"
    wrong: dict[str, int] = {}
    for file, _chunk in report.wrong_chunks:
        path = model.index.files[file].path
        wrong[path] = wrong.get(path, 0) + 1
    for path, count in wrong.items():
        yield f"{path}: {count} of {len(model.index.layouts[_number(model, path)])} chunks are wrong ({dropped})"
    for path in report.unproven:
        yield f"{path} does not have the digest that its source states ({dropped})"


def _number(model: StoredModel, path: str) -> int:
    return next(number for number, file in enumerate(model.index.files) if file.path == path)


def _what_holds(model: StoredModel, report: IntegrityReport) -> str:
    if report.checked_bytes:
        return f"{size_text(report.checked_bytes)} checked, nothing is wrong"
    return "the sizes are right; no digests are known for the bytes" if model.is_local else "nothing of it is here yet"


def _complain(line: str) -> None:
    typer.echo(f"headrace: {line}", err=True)
