"""The files that flow through the pipeline, their right answers, and the models that give them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from skewd_pipeline.corpus import (
    MAX_ITEM_BYTES,
    CorpusError,
    collect,
    default_roots,
    expected_labels,
    load_items,
    save_items,
)
from skewd_pipeline.items import make_item
from skewd_pipeline.model import Model, ModelError, load_model
from tests.waiting import LIMIT_S

# Whoever reads these knows what they are.
KNOWN = {
    "python": b"import os\n\n\ndef main() -> None:\n    for name in os.listdir('.'):\n        print(name)\n\n\n" * 12,
    "markdown": b"# Title\n\nSome *text* with a [link](https://example.org).\n\n- one\n- two\n\n## More\n\n`code`\n"
    * 12,
    "json": b'{"name": "value", "list": [1, 2, 3], "nested": {"a": true, "b": null}}',
    "shell": b'#!/bin/sh\nset -eu\nfor file in *.txt; do\n    echo "$file"\ndone\n' * 4,
}


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    for root, count in ((one, 30), (two, 6)):
        for number in range(count):
            path = root / f"d{number % 3}" / f"file{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {root.name} {number}\n")
    return {"one": one, "two": two}


def counting(answers: list[bytes]) -> Model:
    def classify(data: bytes) -> str:
        answers.append(data)
        return f"length {len(data)}"

    return Model("counting", "counting 1", classify)


def test_the_same_seed_and_tree_give_the_same_items_in_the_same_order(tree: dict[str, Path]) -> None:
    first = collect(seed=7, count=20, roots=tree)
    assert collect(seed=7, count=20, roots=dict(reversed(tree.items()))) == first
    assert collect(seed=8, count=20, roots=tree) != first
    assert len(first) == len({item.digest for item in first}) == 20


def test_roots_share_evenly_and_a_small_one_leaves_its_share_to_the_others(tree: dict[str, Path]) -> None:
    of = Counter(item.name.partition("/")[0] for item in collect(seed=1, count=10, roots=tree))
    assert of == {"one": 5, "two": 5}
    of = Counter(item.name.partition("/")[0] for item in collect(seed=1, count=30, roots=tree))
    assert of == {"one": 24, "two": 6}


def test_only_text_of_a_fitting_size_is_taken_and_each_content_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name, content in {
        "kept.py": b"print(1)\n",
        "copy.py": b"print(1)\n",
        "largest.md": b"x" * MAX_ITEM_BYTES,
        "too-large.md": b"x" * (MAX_ITEM_BYTES + 1),
        "empty.py": b"",
        "picture.png": b"\x89PNG",
        "build/made.py": b"made\n",
        ".git/config.py": b"hidden\n",
        "__pycache__/cached.py": b"cached\n",
        "Makefile": b"all:\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "link.py").symlink_to(root / "largest.md")
    os.mkfifo(root / "pipe.py")
    items = collect(seed=1, count=100, roots={"root": root})
    assert {item.body for item in items} == {b"print(1)\n", b"x" * MAX_ITEM_BYTES, b"all:\n"}
    assert all(item == make_item(item.name, item.body) for item in items)


def test_nothing_to_classify_is_said_with_the_places_looked_at(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=str(tmp_path)):
        collect(seed=1, roots={"empty": tmp_path})
    with pytest.raises(ValueError, match="write 1 to"):
        collect(seed=1, count=0)


def test_the_default_corpus_is_this_repository_and_the_standard_library() -> None:
    items = collect(seed=1, count=60)
    assert Counter(item.name.partition("/")[0] for item in items).keys() == default_roots().keys()
    assert any(item.name.endswith(".py") for item in items)
    assert max(len(item.body) for item in items) <= MAX_ITEM_BYTES


def test_a_label_is_asked_for_once_per_content_and_model(tree: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    items = collect(seed=1, count=20, roots=tree)
    asked: list[bytes] = []
    first = expected_labels(items[:12], counting(asked), cache)
    assert len(asked) == 12
    assert expected_labels(items, counting(asked), cache)[:12] == first
    assert len(asked) == 20
    other = Model("counting", "counting 2", lambda data: "other")
    assert {answer.label for answer in expected_labels(items, other, cache)} == {"other"}
    assert expected_labels(items, counting(asked), cache)[:12] == first
    assert len(asked) == 20


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"counting 1", b"counting 0"),
        lambda content: b'{"model": "counting 1", "labels": {"a": 1}}',
    ],
    ids=["empty", "cut off", "another model's", "wrong types"],
)
def test_a_damaged_cache_is_rebuilt(tree: dict[str, Path], tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    items = collect(seed=1, count=5, roots=tree)
    asked: list[bytes] = []
    right = expected_labels(items, counting(asked), tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert expected_labels(items, counting(asked), tmp_path / "cache") == right
    assert len(asked) == 10


def test_what_is_saved_is_loaded_and_checks_results(tree: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "own_model.py").write_text("def classify(data):\n    return f'{len(data)} bytes'\n")
    script = (
        "import sys\nfrom pathlib import Path\nfrom skewd_pipeline.corpus import save_items\n"
        "roots = {'one': Path(sys.argv[1])}\n"
        "print(save_items(Path('items'), 'own_model:classify', count=9, cache_dir=Path('cache'), roots=roots))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tree["one"])], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.stdout == "9\n", done.stderr
    items = load_items(tmp_path / "items")
    assert [(item.name, item.body) for item in items] == [
        (item.name, item.body) for item in collect(seed=0, count=9, roots={"one": tree["one"]})
    ]
    first, second = items[0], items[1]
    assert first.label == f"{len(first.read())} bytes"
    assert first.is_correct(first.digest, first.label)
    assert not first.is_correct(second.digest, first.label)
    assert not first.is_correct(first.digest, "something else")


@pytest.mark.parametrize("content", [None, b"", b"not ours", b"\x91\x92\xa1a\xc4\x01a"])
def test_what_is_no_saved_corpus_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "items"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=str(path)):
        load_items(path)


def test_the_default_model_knows_what_we_know_and_always_says_the_same(tmp_path: Path) -> None:
    model = load_model()
    assert {label: model(content) for label, content in KNOWN.items()} == {label: label for label in KNOWN}
    assert model.identity.startswith("magika ")
    count = save_items(tmp_path / "items", None, count=30, cache_dir=tmp_path / "cache")
    items = load_items(tmp_path / "items")
    assert len(items) == count == 30
    again = load_model("magika")
    assert all(item.is_correct(item.digest, again(item.body)) for item in items)
    of_python = [item.label for item in items if item.name.endswith(".py") and len(item.body) > 500]
    assert Counter(of_python)["python"] >= 0.9 * len(of_python) > 0


def test_the_default_model_works_in_one_thread() -> None:
    script = (
        "import os\nfrom skewd_pipeline.model import load_model\n"
        "model = load_model()\nbefore = len(os.listdir('/proc/self/task'))\n"
        "import onnxruntime\n"
        "onnxruntime.InferenceSession\n"
        "model(b'import os\\n' * 50)\nprint(len(os.listdir('/proc/self/task')) - before, before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    started_for_inference = int(done.stdout.split()[0])
    assert started_for_inference == 0


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("no-colon", "write magika, or module:callable"),
        (":f", "write magika, or module:callable"),
        ("no_such_module_here:f", "importing no_such_module_here failed"),
        ("os:no_such_function", "no callable 'no_such_function'"),
        ("os:sep", "no callable 'sep'"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_with_the_reason(spec: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        load_model(spec)


@pytest.mark.parametrize("answer", [None, 5, "", "x" * 300, b"bytes"])
def test_an_answer_that_is_no_label_is_an_error(answer: object) -> None:
    with pytest.raises(ModelError, match="must return a text of 1 to 200 characters"):
        Model("own", "own", lambda data: answer)(b"")


def test_ones_own_model_may_be_a_class_and_changes_its_identity_with_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    identities = []
    for version in ("one", "two"):
        (tmp_path / f"own_{version}.py").write_text(
            f"class Detector:\n    def __call__(self, data):\n        return '{version}'\n"
        )
        model = load_model(f"own_{version}:Detector")
        assert model(b"") == version
        identities.append(model.identity)
    assert identities[0] != identities[1]
