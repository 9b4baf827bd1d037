"""A file or folder is written whole or not at all."""

import errno
import os

import pytest

from tskd.errors import RunFolderError
from tskd.storage import atomic_files
from tskd.storage.run_folder import RunFolder

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_written(goal, kind, error):
    with atomic_files.replacing(goal) as partial:
        if kind == "folder":
            partial.mkdir()
        (partial / "a" if kind == "folder" else partial).write_text("half")
        raise error


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path, kind, error):
    goal = tmp_path / "goal"
    with pytest.raises(type(error)):
        half_written(goal, kind, error)
    assert [] == list(tmp_path.iterdir())
    goal.write_text("before")
    with pytest.raises(type(error)):
        half_written(goal, kind, error)
    assert [goal] == list(tmp_path.iterdir())
    assert "before" == goal.read_text()


def test_a_text_that_cannot_be_written_is_an_error_with_file_and_reason(tmp_path, monkeypatch):
    def full(*_):
        raise FULL

    monkeypatch.setattr("os.fsync", full)  # some file systems report only then that they are full
    with pytest.raises(RunFolderError) as error:
        atomic_files.write_text(tmp_path / "below" / "file.txt", "text")
    assert "file.txt" in str(error.value)
    assert FULL.strerror in str(error.value)
    assert [] == list((tmp_path / "below").iterdir())


def test_a_copy_replaces_the_folder_that_was_there(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    atomic_files.copy_folder(tmp_path / "new", tmp_path / "old")
    assert ["new"] == [file.name for file in (tmp_path / "old").iterdir()]
    assert {"old", "new"} == {folder.name for folder in tmp_path.iterdir()}


@pytest.mark.parametrize(("keep", "expected"), [(True, "theirs"), (False, "ours")])
def test_a_folder_made_meanwhile_is_kept_if_asked(tmp_path, keep, expected):
    goal = tmp_path / "goal"
    with atomic_files.room_beside(goal) as room:
        for folder, text in ((goal, "theirs"), (tmp_path / room / "made", "ours")):
            folder.mkdir()
            (folder / "file").write_text(text)
        atomic_files.put(tmp_path / room / "made", goal, keep)
    assert [goal] == list(tmp_path.iterdir())
    assert expected == (goal / "file").read_text()


def test_a_finished_run_loses_what_a_killed_process_left(tmp_path):
    (tmp_path / "iteration_0" / ".adapter-x1" / "partial").mkdir(parents=True)
    (tmp_path / "iteration_0" / "adapter").mkdir()
    RunFolder(tmp_path).close()
    assert ["adapter"] == [each.name for each in (tmp_path / "iteration_0").iterdir()]
