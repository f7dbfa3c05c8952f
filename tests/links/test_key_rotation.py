"""A mesh changes its key while it runs: nobody stops understanding anybody, whatever the order."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

import pytest

from skewd.keys import KeyFile, KeyRing, MeshKey, MeshKeyError, Rotation, generate_key_file, load_keys, rotate_key_file
from tests.links.link_bench import KEY, OTHER_KEY, Node, S, exchange

THIRD_KEY = MeshKey.from_secret(bytes(range(2, 34)))
STEPS = (
    KeyRing((KEY,)),
    KeyRing((KEY, OTHER_KEY)),
    KeyRing((OTHER_KEY, KEY)),
    KeyRing((OTHER_KEY,)),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.key"
    generate_key_file(path)
    return path


class TestOnTheWire:
    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_every_exchange_succeeds_at_each_step_in_any_order(self, order: tuple[int, ...]) -> None:
        nodes = [Node(name, key=STEPS[0]) for name in "abc"]
        now = S
        for step in STEPS[1:]:
            for number in order:
                nodes[number].protocol.use_keys(step)
                for asker, answerer in itertools.permutations(nodes, 2):
                    _, at_asker = exchange(asker, answerer, now)
                    assert at_asker.proofs is not None, at_asker.error
                    now += S
        for node in nodes:
            assert node.protocol.counters["wrong_key"] == node.protocol.counters["bad_mac"] == 0

    def test_an_exchange_that_is_under_way_is_finished(self) -> None:
        a, b = Node("a", key=STEPS[1]), Node("b", key=STEPS[1])
        exchange(a, b, S)
        request = a.request("b", 2 * S)
        b.protocol.use_keys(STEPS[2])
        reply = b.reply(b.receive(request, "a", 2 * S), 2 * S)
        a.protocol.use_keys(STEPS[2])
        assert a.receive(reply, "b", 2 * S).proofs is not None

    def test_a_retired_key_opens_nothing(self) -> None:
        a, b = Node("a", key=STEPS[3]), Node("b", key=STEPS[0])
        assert a.receive(b.request("a", S), "b", S).error == "wrong_key"
        assert Node("c", key=STEPS[3]).protocol.keyed
        assert not Node("c", key=None).protocol.keyed

    def test_who_knows_the_old_key_only_is_answered_with_it(self) -> None:
        a, b = Node("a", key=STEPS[2]), Node("b", key=STEPS[0])
        assert exchange(b, a, S)[1].proofs is not None
        assert b.receive(a.request("b", 2 * S), "a", 2 * S).error == "wrong_key"


class TestTheFile:
    def test_three_steps_change_the_key(self, path: Path) -> None:
        (old,) = load_keys(path).keys
        step, ring = rotate_key_file(path)
        assert step is Rotation.ADDED
        assert ring.sending == old
        new = ring.keys[1]
        assert load_keys(path) == ring
        step, ring = rotate_key_file(path)
        assert (step, ring.keys) == (Rotation.PROMOTED, (new, old))
        assert load_keys(path) == ring
        step, ring = rotate_key_file(path)
        assert (step, ring.keys) == (Rotation.RETIRED, (new,))
        assert load_keys(path) == ring
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(path.parent.iterdir()) == [path]
        assert rotate_key_file(path)[0] is Rotation.ADDED

    def test_mode_and_owner_stay(self, path: Path) -> None:
        path.chmod(0o400)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
        before = path.stat()
        rotate_key_file(path)
        after = path.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)

    def test_keys_put_together_by_hand_are_read_and_not_guessed_about(self, path: Path) -> None:
        keys = (KEY, OTHER_KEY, THIRD_KEY)
        path.write_text("".join(f"skewd-key-1 {key.secret.hex()}\n" for key in keys))
        assert load_keys(path).keys == keys
        before = path.read_bytes()
        with pytest.raises(MeshKeyError, match="by hand"):
            rotate_key_file(path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("lines", "complaint"),
        [
            ([KEY.secret.hex()] * 2, "one key is there twice"),
            ([f"{number:064x}" for number in range(1, 6)], "1 to 4"),
            ([KEY.secret.hex(), OTHER_KEY.secret.hex() + " later"], "not a mesh key"),
        ],
    )
    def test_what_is_no_ring_of_keys_is_refused(self, path: Path, lines: list[str], complaint: str) -> None:
        path.write_text("".join(f"skewd-key-1 {line}\n" for line in lines))
        with pytest.raises(MeshKeyError, match=complaint) as error:
            load_keys(path)
        assert str(path) in str(error.value)

    def test_a_running_node_sees_a_change_and_keeps_its_keys_through_a_bad_one(self, path: Path) -> None:
        file = KeyFile(path)
        first = file.keys
        assert not file.changed()
        _, ring = rotate_key_file(path)
        assert file.changed()
        assert file.keys == ring != first
        assert not file.changed()
        path.write_text("skewd-key-1 nonsense\n")
        assert not file.changed()
        assert file.complaint is not None
        assert str(path) in file.complaint
        assert file.keys == ring
        path.unlink()
        assert not file.changed()
        assert file.complaint is not None
        assert "missing" in file.complaint
        generate_key_file(path)
        assert file.changed()
        assert file.complaint is None

    def test_a_kubernetes_secret_that_is_swapped_is_seen(self, path: Path) -> None:
        """As the kubelet does it: ..data is pointed to another directory."""
        volume = path.parent / "volume"
        for number, name in enumerate(("..one", "..two")):
            (volume / name).mkdir(parents=True)
            generate_key_file(volume / name / "mesh.key")
            assert number < 2
        (volume / "..data").symlink_to("..one")
        (volume / "mesh.key").symlink_to("..data/mesh.key")
        file = KeyFile(volume / "mesh.key")
        (volume / "..new").symlink_to("..two")
        (volume / "..new").replace(volume / "..data")
        assert file.changed()
        assert file.keys == load_keys(volume / "..two" / "mesh.key")
