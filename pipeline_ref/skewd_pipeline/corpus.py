"""Real files to classify, and the right answers for them.

The problem: made-up input makes a made-up experiment, and a downloaded data set makes one that does not run offline.
The insight: every machine that can run this has real text at hand, this repository and Python's own standard library,
and the default model is a detector of file types. So those are the corpus. The answers are computed once, outside the
pipeline, and kept in a file named after the model's identity, by digest of the content: a changed file or another
model is asked again, nothing else is.

The processes of one run must agree on the bytes, also while somebody edits the repository: the experiment collects
once and writes items and answers to one file (``save_items``), which the stages read (``load_items``).

Limits: text and code files of 1 byte to ``MAX_ITEM_BYTES``; at most ``MAX_ITEMS``, and ``MAX_CACHED`` answers
for a model; caches are rebuilt, not trusted,
when they do not look right; ``MAX_FILE_BYTES`` for what is loaded back.
"""

from __future__ import annotations

import contextlib
import os
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from skewd_pipeline.items import Expected, Item, choose, digest_of, make_item
from skewd_pipeline.model import Model, load_model

MAX_ITEM_BYTES = 64 << 10
MAX_ITEMS = 2000
MAX_CACHED = 20_000
MAX_FILE_BYTES = 256 << 20
DEFAULT_ITEMS = 200
SUFFIXES = frozenset(
    {".c", ".cfg", ".conf", ".css", ".h", ".html", ".ini", ".js", ".json", ".md", ".proto", ".py", ".pyi", ".rs"}
    | {".rst", ".service", ".sh", ".sql", ".svg", ".toml", ".txt", ".xml", ".yaml", ".yml"}
)
NAMES = frozenset({"Containerfile", "Dockerfile", "LICENSE", "Makefile"})
SKIPPED_DIRECTORIES = frozenset(
    {"__pycache__", "build", "dist", "idlelib", "lib2to3", "node_modules", "out", "site-packages", "dist-packages"}
    | {"target", "test", "turtledemo", "venv"}
)


class CorpusError(RuntimeError):
    """There is nothing to classify, or a saved corpus cannot be read; the message says what to do."""


class _Labels(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    labels: dict[str, str]


def repository_root() -> Path | None:
    """The checkout this package lies in, or ``None`` when it is installed on its own."""
    here = Path(__file__).resolve().parent
    return next((parent for parent in here.parents if (parent / "pyproject.toml").is_file()), None)


def default_roots() -> dict[str, Path]:
    """Where the files come from, by the name each root goes under: the repository, the standard library."""
    return {
        "repository": repository_root() or Path(__file__).resolve().parent,
        "stdlib": Path(sysconfig.get_paths()["stdlib"]),
    }


def collect(*, seed: int, count: int = DEFAULT_ITEMS, roots: Mapping[str, Path] | None = None) -> list[Item]:
    """Items from real files, as many from each root as there are, shared evenly; each content once.

    Args:
        seed: decides the choice and the order; the same tree and seed give the same items.
        count: how many at most.
        roots: directories by name; ``default_roots()`` if not given.

    Raises:
        CorpusError: no root has a file that fits.
        ValueError: a count that makes no sense.
    """
    if not 1 <= count <= MAX_ITEMS:
        raise ValueError(f"a corpus of {count} items; write 1 to {MAX_ITEMS}")
    found = {name: sorted(_files(root)) for name, root in (roots or default_roots()).items()}
    items: dict[str, Item] = {}
    left = count
    # The smallest root first: what it cannot fill is left to the others.
    ordered = sorted(found.items(), key=lambda entry: (len(entry[1]), entry[0]))
    for position, (name, relative) in enumerate(ordered):
        share = left // (len(ordered) - position)
        root = (roots or default_roots())[name]
        taken = 0
        for path in choose(relative, len(relative), seed):
            if taken == share:
                break
            body = _read(root / path)
            if body is not None and (item := make_item(f"{name}/{path}", body)).digest not in items:
                items[item.digest] = item
                taken += 1
        left -= taken
    if not items:
        tried = ", ".join(str(root) for root in (roots or default_roots()).values())
        raise CorpusError(f"no text or code file of 1 to {MAX_ITEM_BYTES} bytes below {tried}; give another directory")
    return choose(sorted(items.values(), key=lambda item: (item.name, item.digest)), len(items), seed)


def _files(root: Path) -> Iterator[str]:
    """Paths below ``root``, relative, of what looks like text by its name."""
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in SKIPPED_DIRECTORIES and not name.startswith(".")]
        for file in files:
            if Path(file).suffix in SUFFIXES or file in NAMES:
                yield str(Path(directory, file).relative_to(root))


def _read(path: Path) -> bytes | None:
    """The content, or ``None`` when it is no ordinary file of a size that fits."""
    with contextlib.suppress(OSError):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                body = file.read(MAX_ITEM_BYTES + 1)
            if 0 < len(body) <= MAX_ITEM_BYTES:
                return body
    return None


def expected_labels(items: Iterable[Item], model: Model, cache_dir: Path) -> list[Expected]:
    """The items with the right answer for each; from the cache where it is known, else by asking the model.

    Args:
        items: what will be classified.
        model: asked directly; its ``identity`` names it and its version, and another one never sees its answers.
        cache_dir: where answers are kept; made if it is missing.

    Raises:
        ModelError: the model answers with something that is no label.
    """
    path = cache_dir / f"labels-{digest_of(model.identity.encode())[:16]}.json"
    known = _known_labels(path, model.identity)
    fresh: dict[str, str] = {}
    answers = []
    for item in items:
        label = known.get(item.digest) or fresh.get(item.digest)
        if label is None:
            label = fresh[item.digest] = model(item.body)
        answers.append(Expected(item.name, item.body, item.digest, label))
    if fresh:
        cache_dir.mkdir(parents=True, exist_ok=True)
        stored = _Labels(model.identity, dict(list({**known, **fresh}.items())[-MAX_CACHED:]))
        _write(path, msgspec.json.format(msgspec.json.encode(stored), indent=1))
    return answers


def default_cache_dir() -> Path:
    """Where answers are kept if nobody says otherwise: in the checkout's ``build``, else in the user's cache."""
    root = repository_root()
    if root is not None and os.access(root, os.W_OK):
        return root / "build" / "labels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skewd" / "labels"


def save_items(
    path: Path,
    model: str | None = None,
    *,
    seed: int = 0,
    count: int = DEFAULT_ITEMS,
    cache_dir: Path | None = None,
    roots: Mapping[str, Path] | None = None,
) -> int:
    """Collects items, has the model label them, and writes all of it to one file.

    Args:
        path: the file to write.
        model: as for ``model.load_model``.
        seed: decides the choice and the order.
        count: how many at most.
        cache_dir: where labels are kept between runs; ``default_cache_dir()`` if not given.
        roots: as for ``collect``.

    Returns:
        How many items there are.

    Raises:
        CorpusError: nothing to classify.
        ModelError: the model cannot be loaded, or does not answer with labels.
    """
    items = collect(seed=seed, count=count, roots=roots)
    labelled = expected_labels(items, load_model(model), cache_dir or default_cache_dir())
    _write(path, msgspec.msgpack.encode([(item.name, item.body, item.label) for item in labelled]))
    return len(labelled)


def load_items(path: Path) -> list[Expected]:
    """The items of ``save_items``, in order, each with its expected label.

    Raises:
        CorpusError: the file is not there or not one of ours.
    """
    try:
        entries = msgspec.msgpack.decode(_load(path), type=list[tuple[str, bytes, str]])
    except (OSError, msgspec.MsgspecError) as error:
        raise CorpusError(f"{path} holds no saved items: {error}; write them again with save_items()") from error
    return [Expected(name, body, digest_of(body), label) for name, body, label in entries]


def _known_labels(path: Path, identity: str) -> dict[str, str]:
    # A cache that is damaged, or another model's by some accident, is worth nothing and costs a second to rebuild.
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        stored = msgspec.json.decode(_load(path), type=_Labels)
        if stored.model == identity:
            return stored.labels
    return {}


def _load(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(f"it is over {MAX_FILE_BYTES >> 20} MiB")
    return content


def _write(path: Path, content: bytes) -> None:
    """All or nothing, also when two processes write at once."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
