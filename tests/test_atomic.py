from fcntl import LOCK_EX, flock
from pathlib import Path
from threading import Thread

import pytest

from italic import atomic as files
from italic.atomic import locked, whole_file, write_whole

ABANDONED = f"{files.TEMPORARY_PREFIX}0123456789abcdef.part"
ELSEWHERE = ".italic-00000000-0123456789abcdef.part"  # of another machine


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"first")
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write(b"second")
        file.flush()
        assert path.read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 2
        raise KeyError
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_the_file_in_the_place_of_another_has_its_permissions(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "below/link"
    link.parent.mkdir()
    link.symlink_to(path)
    path.touch()
    for mode in (0o400, 0o666, 0o750):
        path.chmod(mode)
        write_whole(link, b"new")
        assert path.stat().st_mode & 0o7777 == mode and path.read_bytes() == b"new"
        assert link.is_symlink() and list(link.parent.iterdir()) == [link]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Files of other machines, of running processes, and with other names are kept."""
    for name in (ABANDONED, ELSEWHERE, ".italic-mine.part"):
        (tmp_path / name).touch()
    with whole_file(tmp_path / "a") as file:
        assert not (tmp_path / ABANDONED).exists()
        files._remove_abandoned.cache_clear()
        write_whole(tmp_path / "b", b"")  # while a is being written
        file.write(b"a")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert (
        names == [ELSEWHERE, ".italic-mine.part", "a", "b"]
        and (tmp_path / "a").read_bytes() == b"a"
    )


def test_a_file_that_was_taken_for_abandoned_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was removed between its creation and its lock."""
    removed = []

    def late(file: object, how: int) -> None:
        if how == LOCK_EX and not removed:
            removed.append(next(tmp_path.glob("*.part")))
            removed[0].unlink()
        flock(file, how)

    monkeypatch.setattr(files, "flock", late)
    write_whole(tmp_path / "a", b"whole")
    assert removed and (tmp_path / "a").read_bytes() == b"whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_locked_file_is_the_one_at_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"first")
    order: list[str] = []

    def replace() -> None:
        with locked(path) as file:
            order.append("second")
            assert file.read() == b"second"

    with locked(path):
        thread = Thread(target=replace)
        thread.start()
        write_whole(path, b"second")
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
