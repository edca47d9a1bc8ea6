import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch

from bnnconvert.errors import UsageError
from bnnconvert.values.files import atomic_write, file_sha256, write_bytes, write_text


def test_the_new_content_replaces_the_old_and_nothing_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_an_error_inside_leaves_the_old_file_and_is_passed_on(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")

    def fail_half_way(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyError("unrelated")

    with pytest.raises(KeyError), atomic_write(target) as temporary:
        fail_half_way(temporary)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "model.bin"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_missing_file_of_somebody_else_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        open(tmp_path / "other" / "b").close()


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UsageError, match=r"model\.bin: no space left on the disk"):
        write_bytes(tmp_path / "model.bin", b"x")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("writer", ["bytes", "torch"])
def test_a_device_without_space_is_recognised_whoever_writes(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_to_a_full_device(temporary: Path) -> None:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        if writer == "bytes":
            temporary.write_bytes(b"x")
        else:
            torch.save(torch.zeros(1000), temporary)

    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(UsageError, match="no space left"), atomic_write(tmp_path / "model.bin") as temporary:
        write_to_a_full_device(temporary)
    assert os.listdir(tmp_path) == []


def test_what_safetensors_says_about_a_full_disk_is_understood(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(UsageError, match="no space left"), atomic_write(tmp_path / "model.bin"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder .*nowhere does not exist; create it first"):
        write_text(tmp_path / "nowhere" / "a.txt", "x")


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match="is a folder; choose another name"):
        write_text(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_way_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(UsageError, match="a: is a device or pipe"):
        write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").is_fifo()
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        write_text(tmp_path / "a" / "b", "x")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_without_permission_is_named(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode)
    with pytest.raises(UsageError, match="may not be written"):
        write_text(folder / "a", "x")


def test_new_files_obey_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_text_is_utf8_and_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "±1\n")
    assert (tmp_path / "a").read_bytes() == b"\xc2\xb11\n"
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"\xc2\xb11\n").hexdigest()
