import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from italic.datamodules.cached import key_of_files, made_once

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""


def test_a_folder_is_made_by_one_of_two(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)
        (folder / "a").touch()

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: made_once(tmp_path / "key", make), range(2)))
    assert folders == [tmp_path / "key"] * 2 and len(made) == 1 and not made[0].exists()
    assert (tmp_path / "key/a").exists()


def test_keys_follow_paths_sizes_and_times_of_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    files = [tmp_path / "data" / name for name in "ab"]
    for path in files:
        path.write_bytes(b"1234")
        os.utime(path, ns=(0, 10**18))
    key = key_of_files("settings", files)
    assert key_of_files("settings", [tmp_path / "data/../data" / name for name in "ab"]) == key
    (tmp_path / "link").symlink_to(files[1])
    assert key_of_files("settings", [files[0], tmp_path / "link"]) == key
    others = [key_of_files("others", files), key_of_files("settings", files[:1])]
    os.utime(files[1], ns=(0, 10**18 + 1))  # one nanosecond later
    others.append(key_of_files("settings", files))
    files[1].write_bytes(b"12345")
    os.utime(files[1], ns=(0, 10**18))
    others.append(key_of_files("settings", files))
    (tmp_path / "data").rename(tmp_path / "moved")
    others.append(key_of_files("settings", [tmp_path / "moved" / path.name for path in files]))
    assert len({key, *others}) == 6


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        made_once(tmp_path / "key", lambda folder: {}["x"])
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    assert made_once(tmp_path / "key", lambda folder: None).is_dir()


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    """Until then others wait; what the process left is removed."""
    (tmp_path / "key.tmp1").mkdir()
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "key.lock")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        with ThreadPoolExecutor(1) as pool:
            folder = pool.submit(made_once, tmp_path / "key", lambda folder: None)
            time.sleep(0.1)
            waited = not folder.done()
            holder.kill()
            assert folder.result(10).is_dir() and waited
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.lock"]
