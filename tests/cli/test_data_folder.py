"""The data folder of `darkroom up`: no other user may read it, even if it existed before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from darkroom.errors import SettingError
from darkroom_cli.local.data_folder import DataFolder

from tests.darkroom_command import darkroom

ANOTHER_USER = 65534


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "new" / "folder")
    folder.make()
    assert mode_of(folder.path) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o777, 0o711, 0o704])
def test_an_existing_empty_folder_becomes_private(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    DataFolder(tmp_path).make()
    assert mode_of(tmp_path) == 0o700


def test_an_opened_data_folder_becomes_private_again(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.make()
    tmp_path.chmod(0o755)
    folder.make()
    assert mode_of(tmp_path) == 0o700


def test_an_open_folder_with_other_files_is_refused_and_unchanged(tmp_path: Path) -> None:
    """It may be a home folder or `/tmp`, which other users need."""
    (tmp_path / "letter.txt").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(SettingError, match="holds files that are not darkroom's"):
        DataFolder(tmp_path).make()
    assert mode_of(tmp_path) == 0o755
    assert [each.name for each in tmp_path.iterdir()] == ["letter.txt"]


def test_a_private_folder_with_other_files_is_used(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    tmp_path.chmod(0o700)
    DataFolder(tmp_path).make()
    assert (tmp_path / "store").is_dir()


def test_a_partly_restored_data_folder_becomes_private(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    tmp_path.chmod(0o755)
    DataFolder(tmp_path).make()
    assert mode_of(tmp_path) == 0o700


def test_the_parent_folder_of_environments_becomes_private(tmp_path: Path) -> None:
    DataFolder(tmp_path / ".darkroom" / "dev").make()
    (tmp_path / ".darkroom").chmod(0o755)
    DataFolder(tmp_path / ".darkroom").make()
    assert mode_of(tmp_path / ".darkroom") == 0o700


def of_another_user(tmp_path: Path) -> Path:
    """A folder of another user: created by the test if it has the privileges, else one of the system."""
    if os.geteuid() != 0:
        return Path("/usr")
    os.chown(tmp_path, ANOTHER_USER, ANOTHER_USER)
    return tmp_path


def test_the_command_refuses_a_folder_of_another_user_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    theirs = of_another_user(tmp_path / "theirs")
    done = darkroom(["up", "--data", str(theirs)], folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"{theirs}: cannot hold the data: {theirs} belongs to another user" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["link-key", "redis", "elsewhere"])
def test_a_folder_with_files_of_another_user_is_refused(name: str, tmp_path: Path) -> None:
    """That user could know a key, or place a link that leads out of the folder."""
    planted = tmp_path / name
    if os.geteuid() == 0:
        planted.touch()
        os.chown(planted, ANOTHER_USER, ANOTHER_USER)
        folder = tmp_path
    else:
        folder, planted = Path("/"), next(Path("/").iterdir())
    with pytest.raises(SettingError, match="belongs to another user"):
        DataFolder(folder).make()
