"""The `nic` command: what it writes, prints and returns."""

import json
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from io import BytesIO, StringIO
from pathlib import Path

import click.testing
import numpy as np
import pytest
from PIL import Image, ImageCms

from nic.cli import files, jobs
from nic.cli.main import cli
from nic.errors import BadOutput, NicError, UsageError
from nic.progress import advance, expect

NIC = [sys.executable, "-m", "nic"]


def nic(*arguments: object, stdin: bytes | None = None) -> click.testing.Result:
    """Run `nic` in this process."""
    return click.testing.CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def pictures(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photo.png, photo.nic, text.nic (none), empty, and in sub/ another.jpg."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    Image.fromarray(photo).save(folder / "photo.png")
    Image.fromarray(photo[::-1]).save(folder / "sub" / "another.JPG", quality=90)
    (folder / "text.nic").write_text("no .nic file")
    (folder / "empty").touch()
    assert nic("compress", folder / "photo.png", folder / "photo.nic", "-e", 1).exit_code == 0
    return folder


def test_compress_and_decompress(pictures: Path, photo: np.ndarray, tmp_path: Path) -> None:
    target = tmp_path / "photo.nic"
    result = nic("compress", pictures / "photo.png", target, "-q", 70, "-e", 1)
    assert result.exit_code == 0
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{pictures / 'photo.png'} -> {target}  80x96  ")
    assert re.search(r" bpp  [\d.e-]+ Mpx/s$", line)
    assert nic("decompress", target, tmp_path / "photo.webp", "--quiet").output == ""
    with Image.open(tmp_path / "photo.webp") as image:
        assert image.format == "WEBP"
        assert np.abs(np.asarray(image).astype(int) - photo).mean() < 30


@pytest.mark.parametrize("target", [["--bpp", "1.5"], ["--size", "2k"], ["--psnr", "30"], ["-q", "12.5"]])
def test_rate_targets_are_accepted(pictures: Path, tmp_path: Path, target: list[str]) -> None:
    result = nic("compress", pictures / "photo.png", tmp_path / "out.nic", "-e", 1, *target)
    assert result.exit_code == 0, result.output
    assert bool(re.search(r" bpp  quality \d+\.\d  ", result.stderr)) == ("-q" not in target)


@pytest.mark.parametrize(
    "options",
    [
        ["--bpp", "1", "-q", "50"],
        ["--size", "1k", "--psnr", "30"],
        ["-q", "101"],
        ["-q", "high"],
        ["-q", "nan"],
        ["--bpp", "0"],
        ["--bpp", "nan"],
        ["--psnr", "inf"],
        ["--mask-rate", "nan"],
        ["--size", "0"],
        ["--size", "much"],
        ["--size", "1e999"],
        ["--size", "5Mk"],
        ["--frames", "0:2"],
        ["--force", "--resume"],
        ["-e", "10"],
        ["--device", "tpu"],
        ["--no-such-option"],
    ],
)
def test_wrong_options_exit_2(pictures: Path, tmp_path: Path, options: list[str]) -> None:
    assert nic("compress", pictures / "photo.png", tmp_path / "out.nic", *options).exit_code == 2
    assert not (tmp_path / "out.nic").exists()


def test_wrong_arguments_exit_2(pictures: Path, tmp_path: Path) -> None:
    photo = pictures / "photo.png"
    assert nic("compress", photo).exit_code == 2
    assert nic("compress", photo, photo, tmp_path / "out.nic").exit_code == 2
    assert nic("compress", pictures, tmp_path / "out.nic").exit_code == 2
    assert nic("compress", "-", "-o", tmp_path).exit_code == 2
    assert nic("decompress", pictures / "photo.nic", tmp_path / "photo.gif").exit_code == 2
    assert nic("decompress", pictures / "photo.nic", tmp_path / "photo").exit_code == 2
    for name in ("exe", "a/b", "", "."):
        assert nic("decompress", pictures / "photo.nic", "-", "--format", name).exit_code == 2
        assert nic("decompress", pictures / "photo.nic", "-o", tmp_path, "--format", name).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["compress", "none.png", "out.nic"], 3, "nic: none.png: cannot be read: No such file or directory"),
        (["compress", "n" * 999, "-o", "out"], 3, f"nic: {'n' * 999}: cannot be read: File name too long"),
        (["compress", "empty", "out.nic"], 3, "nic: empty: empty file"),
        (["compress", "photo.png", "-o", "out.nic"], 2, "nic: -o takes a folder, and out.nic looks like a file"),
        (["compress", "photo.png", "-o", "-"], 2, "nic: -o takes a folder, and - looks like a file"),
        (["decompress", "photo.nic", "-o", "out.jpg"], 2, "nic: -o takes a folder, and out.jpg looks like a file"),
        (["compress", "text.nic", "out.nic"], 3, "nic: text.nic: not a picture that nic reads"),
        (["decompress", "none.nic", "out.png"], 3, "nic: none.nic: cannot be read: No such file or directory"),
        (["decompress", "text.nic", "out.png"], 4, "nic: text.nic: not a .nic file"),
        (["info", "text.nic"], 4, "nic: text.nic: not a .nic file"),
        (["verify", "photo.png"], 4, "nic: photo.png: not a .nic file"),
        (["compress", "photo.png", "photo.nic"], 6, "nic: photo.png: photo.nic exists"),
        (["compress", "photo.png", "sub"], 2, "nic: sub is a folder: write -o before it"),
        (["compress", "-f", "photo.png", "sub/another.JPG"], 2, "nic: sub/another.JPG is called like a picture"),
        (["compress", "photo.png", "photo.png/out.nic"], 6, "nic: photo.png: photo.png/out.nic cannot be written: "),
        (["decompress", "photo.nic", "name"], 2, "nic: photo.nic: a name without a suffix names no format: use .png, "),
    ],
)
def test_errors_are_one_line(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], exit_code: int, message: str
) -> None:
    monkeypatch.chdir(pictures)
    before = set(pictures.iterdir())
    result = nic(*arguments)
    assert result.exit_code == exit_code
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert set(pictures.iterdir()) == before


def test_damaged_and_newer_files(pictures: Path, tmp_path: Path) -> None:
    data = (pictures / "photo.nic").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for damaged in (data[:-1], data[: len(data) // 2], bytes(flipped), data + b"more", b""):
        (tmp_path / "damaged.nic").write_bytes(damaged)
        for command in (["verify"], ["info"]):
            result = nic(*command, tmp_path / "damaged.nic")
            assert (result.exit_code, result.stderr.count("\n")) == (4, 1)
            assert ("width: 80\nheight: 96\n" in result.stdout) == (command == ["info"] and damaged != b"")
            assert ("\nproblems:\n  " in result.stdout) == (command == ["info"] and damaged != b"")
        result = nic("decompress", "--force", tmp_path / "damaged.nic", tmp_path / "out.png")
        assert result.exit_code == (7 if damaged.endswith(b"more") else 4)
        assert result.stderr.count("\n") == 1
        assert (tmp_path / "out.png").exists() == (result.exit_code == 7)
        (tmp_path / "out.png").unlink(missing_ok=True)


def test_debug_shows_the_traceback(pictures: Path) -> None:
    result = nic("--debug", "verify", pictures / "text.nic")
    assert isinstance(result.exception, Exception)
    assert not isinstance(result.exception, SystemExit)


def test_force_overwrites(pictures: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.nic"
    target.write_text("precious")
    assert nic("compress", pictures / "photo.png", target, "-e", 1).exit_code == 6
    assert target.read_text() == "precious"
    assert nic("compress", pictures / "photo.png", target, "-e", 1, "--force").exit_code == 0
    assert target.read_bytes().startswith(b"\x89NIC")


def test_an_input_is_never_overwritten(pictures: Path, tmp_path: Path) -> None:
    """Not even with --force, and whatever its names are."""
    photo = tmp_path / "photo.png"
    photo.write_bytes((pictures / "photo.png").read_bytes())
    (tmp_path / "link.nic").symlink_to(photo)
    (tmp_path / "clip.nic").write_bytes((pictures / "photo.png").read_bytes())
    for arguments in ((photo, photo), (photo, tmp_path / "link.nic"), (tmp_path / "clip.nic", "-o", tmp_path)):
        result = nic("compress", *arguments, "--force")
        assert (result.exit_code, "would be overwritten" in result.stderr) == (2, True)
    for path in (photo, tmp_path / "clip.nic"):
        assert path.read_bytes() == (pictures / "photo.png").read_bytes()


def test_an_output_folder_that_is_a_file(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    result = nic("compress", pictures, "-o", tmp_path / "file")
    assert (result.exit_code, result.stderr) == (6, f"nic: {tmp_path / 'file'} is a file: -o takes a folder\n")
    assert (tmp_path / "file").read_text() == "precious"


def test_folders_keep_relative_names(pictures: Path, tmp_path: Path) -> None:
    result = nic("compress", pictures, "-o", tmp_path / "nics", "-e", 1)
    assert result.exit_code == 0, result.output
    assert sorted(path.relative_to(tmp_path / "nics").as_posix() for path in (tmp_path / "nics").rglob("*.nic")) == [
        "photo.nic",
        "sub/another.nic",
    ]
    assert nic("decompress", tmp_path / "nics", "-o", tmp_path / "jpegs", "--format", "jpg").exit_code == 0
    assert (tmp_path / "jpegs" / "sub" / "another.jpg").is_file()


def test_one_failure_does_not_stop_the_rest(pictures: Path, tmp_path: Path) -> None:
    inputs = [pictures / "none.png", pictures / "text.nic", pictures / "photo.png"]
    result = nic("compress", *inputs, "-o", tmp_path, "-e", 1)
    assert result.exit_code == 3
    assert [line.split(":")[0] for line in result.stderr.splitlines()[:2]] == ["nic", "nic"]
    assert (tmp_path / "photo.nic").is_file()
    result = nic("verify", pictures / "text.nic", pictures / "photo.nic")
    assert (result.exit_code, result.stdout) == (4, f"{pictures / 'photo.nic'}: OK\n")


def test_metadata_may_be_left_out(pictures: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where and when"
    with Image.open(pictures / "photo.png") as image:
        image.save(
            tmp_path / "photo.png",
            exif=exif,
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        )
    tags = []
    for options in ((), ("--strip",)):
        assert nic("compress", "-f", "-e", 1, *options, tmp_path / "photo.png", tmp_path / "photo.nic").exit_code == 0
        description = json.loads(nic("info", "--json", tmp_path / "photo.nic").stdout)
        tags.append([chunk["tag"] for chunk in description["chunks"]])
    assert tags == [["HEAD", "iccp", "exif", "CELL", "DONE"], ["HEAD", "iccp", "CELL", "DONE"]]


def test_pipes(pictures: Path) -> None:
    compressed = nic("compress", "-", "-", "--quiet", "-e", 1, stdin=(pictures / "photo.png").read_bytes())
    assert compressed.stdout_bytes == (pictures / "photo.nic").read_bytes()
    assert nic("info", "-", stdin=compressed.stdout_bytes).exit_code == 0
    for name in ("png", "TIFF"):
        picture = nic("decompress", "-", "-", "--format", name, stdin=compressed.stdout_bytes)
        with Image.open(BytesIO(picture.stdout_bytes)) as image:
            assert (image.format, image.size) == (name.upper(), (80, 96))
    assert nic("decompress", "-", "-", stdin=compressed.stdout_bytes).stdout_bytes.startswith(b"\x89PNG")


def test_a_file_that_can_be_read_once(pictures: Path, tmp_path: Path) -> None:
    """As a shell's <(command) gives."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=(tmp_path / "pipe").write_bytes, args=[(pictures / "photo.png").read_bytes()], daemon=True
    )
    writer.start()
    result = nic("compress", tmp_path / "pipe", tmp_path / "out.nic", "-e", 1)
    writer.join(10)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out.nic").read_bytes() == (pictures / "photo.nic").read_bytes()


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="systems that name stdout")
def test_stdout_by_its_name(pictures: Path) -> None:
    command = [*NIC, "compress", pictures / "photo.png", "/dev/stdout", "-e", "1", "--quiet"]
    result = subprocess.run(command, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == (pictures / "photo.nic").read_bytes()


def test_a_video_from_a_pipe(tmp_path: Path) -> None:
    result = nic("compress", "-", tmp_path / "out.nic", stdin=b"\0\0\0\x20ftypisom" + bytes(99))
    assert (result.exit_code, "save it as a file first" in result.stderr) == (3, True)


def test_info(pictures: Path) -> None:
    path = str(pictures / "photo.nic")
    assert "width: 80\nheight: 96\n" in nic("info", path).stdout
    lines = nic("info", "--json", path, path).stdout.splitlines()
    assert len(lines) == 2
    description = json.loads(lines[0])
    assert (description["file"], description["width"], description["height"]) == (path, 80, 96)
    assert description["problems"] == []


def test_folders_of_files_are_checked_and_shown(pictures: Path, tmp_path: Path) -> None:
    for name in ("a.nic", "sub/b.nic", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((pictures / "photo.nic").read_bytes())
    result = nic("verify", tmp_path)
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'a.nic'}: OK\n{tmp_path / 'sub' / 'b.nic'}: OK\n"
    assert len(nic("info", "--json", tmp_path / "sub", tmp_path / "a.nic").stdout.splitlines()) == 2


def test_folders_with_nothing_in_them_do_not_stop_the_others(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for command, source in (("compress", "photo.png"), ("decompress", "photo.nic")):
        result = nic(command, tmp_path / "nothing", pictures / source, "-o", tmp_path / command, "--quiet")
        assert result.exit_code == 3
        assert re.fullmatch(rf"nic: {tmp_path}/nothing: no file in this folder .*\n", result.stderr)
        assert len(list((tmp_path / command).iterdir())) == 1
    missing, broken = tmp_path / "missing.nic", pictures / "text.nic"
    result = nic("info", "--json", tmp_path / "nothing", missing, broken, pictures / "photo.nic")
    told = {line["file"]: line["problems"] for line in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == 3 and len(told) == 4
    assert "No such file" in told[str(missing)][0] and "not a .nic file" in told[str(broken)][0]


def test_models() -> None:
    names = [json.loads(line)["name"] for line in nic("models", "--json").stdout.splitlines()]
    assert names
    assert all(name in line for name, line in zip(names, nic("models").stdout.splitlines(), strict=True))


def test_help_documents_every_exit_code() -> None:
    text = nic("--help").stdout
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 130):
        assert f"\n    {code} " in text
    for command in cli.commands:
        assert nic(command, "--help").exit_code == 0


# Files


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("Unable to allocate 2. GiB for an array"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("a bug"), False),
    ],
)
def test_memory_that_does_not_suffice_is_one_line(error: Exception, told: bool) -> None:
    def task() -> None:
        raise error

    if told:
        outcome = jobs.attempt(task)
        assert isinstance(outcome, NicError) and "memory" in str(outcome) and outcome.exit_code == 1
    else:
        with pytest.raises(RuntimeError, match="a bug"):
            jobs.attempt(task)


def test_two_sources_never_share_a_target(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "b.png").touch()
    suffixes = {".png", ".jpg"}
    targets = files.plan([str(tmp_path)], "out", ".nic", suffixes)
    assert sorted(targets.values()) == ["out/a.jpg.nic", "out/a.png.nic", "out/b.nic"]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "b.png").touch()
    (tmp_path / "a.png.nic").touch()
    assert files.plan([str(tmp_path / "a.png.nic")], "out", ".png", {".nic"}) == {
        str(tmp_path / "a.png.nic"): "out/a.png"
    }
    with pytest.raises(UsageError, match="both"):
        files.plan([str(tmp_path / "b.png"), str(tmp_path / "c" / "b.png")], "out", ".nic", suffixes)
    assert files.plan([str(tmp_path)], "out", ".nic", {".webp"}) == {str(tmp_path): ""}


def test_write_honours_umask_and_leaves_nothing_else(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.write(str(tmp_path / "new" / "out"), b"bytes")
    finally:
        os.umask(old)
    (path,) = (tmp_path / "new").iterdir()
    assert path.read_bytes() == b"bytes"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("cause", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise cause

    path = tmp_path / "out"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((BadOutput, KeyboardInterrupt)):
        files.write(str(path), b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    files.write(str(tmp_path / "link"), b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    files.check_target(os.devnull, force=False)
    files.write(os.devnull, b"new")
    assert not Path(os.devnull).is_file()


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_progress_within_a_picture(terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal() if terminal else StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with jobs.picture_bar("large.png", quiet):
        expect(4)
        advance()
        time.sleep(1.1)  # shorter work shows no bar
        advance()
    assert ("large.png:  50%" in stderr.getvalue()) == (terminal and not quiet)


def test_no_bars_from_one_process_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not jobs.hides_bars(quiet=False)
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    assert jobs.hides_bars(quiet=False)


# As real processes


def test_a_real_pipe(pictures: Path, tmp_path: Path) -> None:
    with open(pictures / "photo.png", "rb") as photo:
        compressed = subprocess.run(
            [*NIC, "compress", "-", "-", "-e", "1"], stdin=photo, capture_output=True, check=True
        )
    assert compressed.stdout == (pictures / "photo.nic").read_bytes()
    assert compressed.stderr.decode().startswith("- -> -  80x96")


def test_real_exit_codes(pictures: Path) -> None:
    result = subprocess.run([*NIC, "info", pictures / "text.nic"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr == f"nic: {pictures / 'text.nic'}: not a .nic file\n"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_quiet(tmp_path: Path, sent: signal.Signals) -> None:
    os.mkfifo(tmp_path / "endless.png")
    process = subprocess.Popen(
        [*NIC, "compress", tmp_path / "endless.png", tmp_path / "out.nic"], stderr=subprocess.PIPE
    )
    with open(tmp_path / "endless.png", "wb"):  # waits until nic reads
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["endless.png"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's full device")
@pytest.mark.parametrize(("stdout", "reason"), [("/dev/full", "No space left on device"), ("&-", "it is closed")])
def test_stdout_that_takes_nothing(pictures: Path, stdout: str, reason: str) -> None:
    command = f"{sys.executable} -m nic compress {pictures / 'photo.png'} - -e 1 >{stdout}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (
        6,
        f"nic: {pictures / 'photo.png'}: stdout cannot be written: {reason}\n",
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's full device")
def test_text_for_a_full_stdout() -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run([*NIC, "models"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (6, "nic: output cannot be written: No space left on device\n")


def test_stderr_that_is_closed(pictures: Path) -> None:
    command = f"{sys.executable} -m nic compress {pictures / 'photo.png'} - -e 1 2>&-"
    result = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (0, (pictures / "photo.nic").read_bytes())


def test_stdin_that_is_closed(pictures: Path) -> None:
    command = f"{sys.executable} -m nic info - <&-"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (3, "nic: stdin: cannot be read: it is closed\n")


def test_a_terminal_gets_no_binary(pictures: Path) -> None:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    result = subprocess.run([*NIC, "compress", pictures / "photo.png", "-"], stdout=child, stderr=subprocess.PIPE)
    os.close(child)
    os.close(parent)
    assert result.returncode == 2
    assert b"terminal" in result.stderr


@pytest.mark.parametrize("command", ["compress", "decompress", "info", "verify"])
def test_an_empty_name_is_not_the_current_folder(pictures: Path, command: str) -> None:
    names = ("", "-o", "out") if "press" in command else ("",)
    result = nic(command, *names)
    assert result.exit_code == 2 and "one of the names is empty" in result.output


def test_a_folder_as_output_needs_its_option(pictures: Path) -> None:
    result = nic("compress", pictures / "photo.png", pictures)
    assert result.exit_code == 2 and "write -o before it" in result.output
