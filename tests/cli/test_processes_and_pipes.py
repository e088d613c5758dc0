"""Processes, signals, disks and pipes of the command-line program."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from italic.atomic import TEMPORARY_SUFFIX
from italic.cli import commands, shards, work
from italic.cli.jobs import find
from italic.cli.messages import Errors
from italic.cli.reporting import SAMPLES
from italic.cli.work import same_picture
from italic.coding.files import pictures
from italic.coding.files.container import (
    ArchiveReader,
    Colour,
)
from italic.processes.local import in_processes
from tests.cli.program import Capture, noisy, run, script, tree

pytestmark = pytest.mark.slow


def test_processes(model: str, here: Path, capsys: Capture) -> None:
    Path("photos/aa.png").write_text("no picture")
    texts = []
    for jobs in (1, 2):
        arguments = ["--model", model, "--jobs", jobs]
        assert run("compress", "photos", "-o", "small", "--force", *arguments) == 1
        captured = capsys.readouterr()
        texts.append(
            (captured.out, captured.err, [Path("small", n).read_bytes() for n in tree("small")])
        )
    (out, *rest), (other, *others) = texts
    assert rest == others and re.sub(r"[\d.]+ s\n", "", out) == re.sub(r"[\d.]+ s\n", "", other)


def deadly(batch: list[bytes]) -> list[bytes]:
    if any(item.startswith(b"bad") for item in batch):
        os._exit(9)
    return batch


def test_a_killed_process_affects_only_its_batch() -> None:
    """Also while more data are sent to it than a pipe holds."""
    large = bytes(2**20)
    batches = [
        [b"a"],
        [b"bad", b"beside"],
        [b"b" + large],
        [b"c" + large],
        [b"bad" + large],
        [b"d"],
    ]
    seen: list[float] = []
    made = list(in_processes(deadly, iter(batches), 2, "ended", seen.append))
    assert [item if item == "ended" else item[:1] for item in made] == [
        *(b"a", "ended", "ended", b"b", b"c", "ended", b"d")
    ]
    assert seen == [1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    before = tree()
    assert run("compress", "photos", "-o", "small", "--model", model) == 1
    assert capsys.readouterr().err.splitlines() == [
        "italic: small/a.italic: No space left on device; 2 pictures were not processed"
    ]
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 1
    assert capsys.readouterr().err == "italic: x.italic: No space left on device\n"
    assert tree() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals(model: str, here: Path, number: signal.Signals) -> None:
    """The signals arrive while an archive is written, when its temporary file exists."""
    noisy(Path("photos/a.png"), side=64)
    command, environment = script(model)
    command += ["archive", "photos", "-o", "x.italic", "--model", model, "--steps"]
    before = tree()
    process = subprocess.Popen(
        [*command, "4096"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while tree() == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    left = set(tree()) - set(before)
    if number == signal.SIGKILL:
        (name,) = left
        assert name.startswith(".italic-") and name.endswith(TEMPORARY_SUFFIX)
        shutil.copy(name, "photos")  # it must not be read as a picture
        assert run("archive", "photos", "-o", "x.italic", "--model", model) == 0
        assert not Path(name).exists()
        with open("x.italic", "rb") as file:
            assert len(ArchiveReader(file)) == 3
    else:
        assert process.returncode == 128 + number and not left
        assert err == b"italic: stopped; unfinished files are removed\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signals_with_processes(model: str, here: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches all processes of a terminal: they end without a traceback."""
    for name in "abcd":
        noisy(Path(f"photos/{name}.png"), side=64)
    Path("photos/b.bmp").unlink()
    command, environment = script(model)
    command += ["archive", "photos", "-o", "x.italic", "--model", model, "--steps", "4096"]
    before = tree()
    process = subprocess.Popen(
        [*command, "--jobs", "2"],
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while tree() == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(2)  # until the processes work
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, err = process.communicate(timeout=300)  # until all processes that share stderr have ended
    if number == signal.SIGINT:
        assert process.returncode == 130 and tree() == before
        assert err == b"italic: stopped; unfinished files are removed\n"


def test_pipes(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture
) -> None:
    command, environment = script(model)
    command += ["compress", "-", "--model", model]
    data = Path("photos/a.png").read_bytes()
    coded = subprocess.run(command, input=data, env=environment, capture_output=True, check=True)
    assert coded.stdout.startswith(b"\x89ITL") and coded.stderr == b""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(coded.stdout)))
    assert run("decompress", "-", "-o", "-") == 0
    decoded = capsysbinary.readouterr().out
    assert same_picture(pictures.read(decoded), pictures.read(data))


def pipe(data: bytes, name: str = "pipe") -> Path:
    """A named pipe with a writer."""
    os.mkfifo(name)
    threading.Thread(target=Path(name).write_bytes, args=(data,), daemon=True).start()
    return Path(name)


def test_named_pipes_are_read_once(model: str, here: Path, capsysbinary: Any) -> None:
    assert run("compress", "photos/a.png", "-o", "x.italic", "--model", model) == 0
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    capsysbinary.readouterr()
    coded, archive = Path("x.italic").read_bytes(), Path("all.italic").read_bytes()
    assert run("info", pipe(coded, "1"), "x.italic") == 0
    assert capsysbinary.readouterr().out.count(b": one picture, 16") == 2
    assert run("test", pipe(archive, "2"), pipe(coded, "3")) == 0
    assert capsysbinary.readouterr().out == b"2: ok, 3 pictures\n3: ok\n"
    assert run("decompress", pipe(coded, "4")) == 0
    assert same_picture(pictures.read(capsysbinary.readouterr().out), pictures.read("photos/a.png"))
    assert run("decompress", pipe(archive, "5"), "-o", "all") == 0
    assert run("compress", pipe(Path("photos/a.png").read_bytes(), "6"), "-o", "y") == 0
    Path("out").mkdir()
    assert run("decompress", pipe(coded, "7"), pipe(coded, "8"), "-o", "out") == 0
    assert (len(tree("all")), tree("out")) == (3, ["7.png", "8.png"])
    assert run("compress", pipe(b"", "9"), pipe(b"", "10"), "--model", model) == 2


def test_a_pipe_in_a_folder_is_no_picture(model: str, here: Path, capsys: Capture) -> None:
    os.mkfifo("photos/p.png")
    assert run("compress", "photos", "-o", "out", "--model", model) == 1
    assert tree("out") == ["a.italic", "b.italic", "sub/c.italic"]
    assert capsys.readouterr().err == "italic: photos/p.png: it is not a regular file\n"
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 1
    assert run("info", os.devnull) == 1
    assert capsys.readouterr().err.endswith(f"italic: {os.devnull}: it is not a regular file\n")
    with open("list", "wb") as listing, pytest.raises(SystemExit):
        shards.list_pictures(Path("photos"), listing, Errors())


def test_closed_standard_streams(model: str, here: Path) -> None:
    """Files opened later must not get their numbers, and messages must not go to stdout."""
    _, environment = script(model)
    assert run("compress", "photos/a.png", "-o", "x.italic", "--model", model) == 0

    def closing(numbers: str, *arguments: str, program: str = "main()") -> tuple[int, bytes, bytes]:
        words = [sys.executable, "-c", f"from italic.cli import main; {program}", *arguments]
        shell = " ".join(f"{number}>&-" for number in numbers)
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {shell}', "sh", *words], env=environment, capture_output=True
        )
        return done.returncode, done.stdout, done.stderr

    program = "code = main(); open('number', 'w').write(str(open('x').fileno())); exit(code)"
    Path("x").touch()
    assert closing("012", "info", "x.italic", program=program) == (0, b"", b"")
    assert int(Path("number").read_text()) > 2
    code, _, told = closing("1", "compress", "photos/a.png", "-o", "-")
    assert code == 2 and b"stdout is closed" in told
    code, _, told = closing("0", "info", "-")
    assert code == 2 and b"stdin is closed" in told
    assert closing("2", "info", "gone", program="exit(main())") == (1, b"", b"")


def test_stdin_to_a_file(model: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def piped(name: str) -> None:
        data = io.BytesIO(Path(name).read_bytes())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))

    piped("photos/a.png")
    assert run("compress", "-", "-o", "x.italic", "--model", model) == 0
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    for command in ("test", "info"):
        piped("x.italic")
        assert run(command, "-") == 0
    piped("all.italic")
    assert run("decompress", "-", "-o", "all") == 0
    assert len(tree("all")) == 3
    piped("all.italic")
    Path("made").mkdir()
    assert run("decompress", "-", "-o", "made") == 0
    piped("all.italic")
    assert run("extract", "-", "a.png", "-o", "made/") == 1  # it exists already
    piped("all.italic")
    assert run("extract", "-", "a.png", "-o", "made/", "--force") == 0
    assert len(tree("made")) == 3


@pytest.mark.parametrize(("full", "code"), [(False, 141), (True, 1)])
def test_an_output_that_nobody_takes(model: str, here: Path, full: bool, code: int) -> None:
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    command, environment = script(model)
    if full:
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        unread, output = os.pipe()
        os.close(unread)
    done = subprocess.run(
        [*command, "info", "a.italic"], env=environment, stdout=output, stderr=subprocess.PIPE
    )
    os.close(output)
    assert done.returncode == code
    assert done.stderr == (b"italic: stdout: No space left on device\n" if full else b"")


def test_progress(model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert run("compress", "photos", "-o", "small", "--model", model) == 0
    captured = capsys.readouterr()
    assert "coding" in captured.err and len(captured.out.splitlines()) == 5


def test_progress_grows(model: str, here: Path) -> None:
    args = SimpleNamespace(inputs=["photos"])
    jobs, _ = find(args, {".png", ".bmp"}, Errors())  # type: ignore[arg-type]
    seen: list[float] = []
    how = work.Encoding(model, 4, None, verify=True, keep_metadata=True, processes=1)
    chosen = [item for item, _ in work.read_pictures(jobs, how)]
    assert len(work.encode(chosen, seen.append, how)) == 2  # type: ignore[arg-type]
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1)
    assert len({round(share, 9) for share in seen}) > 2


@pytest.mark.parametrize("colour", Colour)
def test_every_kind_has_its_samples_counted(colour: Colour) -> None:
    channels = {"GREY": 1, "BILEVEL": 1, "PALETTE": 1, "RGB": 3}[
        colour.name.split("_")[0].rstrip("A16")
    ]
    assert SAMPLES.get(colour, 1) == channels + (
        "A" in colour.name.replace("GREY", "").replace("PALETTE", "")
    )


def test_errors_of_our_own_are_sentences_too(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "encoded", lambda *_: {}["x"])
    assert run("compress", "photos", "--model", model) == 1
    assert capsys.readouterr().err.startswith("italic: unexpected KeyError: 'x'; ")


def test_a_terminal_without_unicode(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "latin1"))
    assert run("compress", "photos/a.png", "--model", model) == 0
    assert rb"photos/a.png \u2192 photos/a.italic" in shown.getvalue()


def test_two_at_once(model: str, here: Path) -> None:
    """Each file is written completely by one of the two; the later one reports an error."""
    command, environment = script(model)
    command += ["compress", "photos", "-o", "small", "--model", model, "--steps", "200"]
    start = partial(subprocess.Popen, command, env=environment, stderr=subprocess.PIPE, text=True)
    both = [start(stdout=subprocess.DEVNULL) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert "Traceback" not in "".join(errors)
    assert tree("small") == ["a.italic", "b.italic", "sub/c.italic"]
    assert run("test", "small") == 0


def test_killed_while_files_are_written(model: str, here: Path) -> None:
    for number in range(40):
        noisy(Path(f"many/{number}.png"), number)
    command, environment = script(model)
    command += ["compress", "many", "-o", "small", "--model", model, "--jobs", "2"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not any(Path("small").glob("*.italic")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert run("test", "small") == 0
    assert run("compress", "many", "-o", "small", "--model", model, "--force") == 0
    assert len([name for name in tree("small") if name.endswith(".italic")]) == 40
