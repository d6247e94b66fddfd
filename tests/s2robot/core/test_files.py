"""Files appear whole or not at all."""

import errno

import pytest

from s2robot.core.files import replacing, write_json, write_text


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    (tmp_path / "a" / ".b.part.json").symlink_to("/dev/full")  # its write fails as on a full disk
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "a" / "b.json", "new")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "a" / "b.json")
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["b.json"]
    assert (tmp_path / "a" / "b.json").read_text() == '{\n "x": 1\n}'


def test_who_writes_the_same_file_meanwhile_has_a_name_of_its_own(tmp_path):
    path = tmp_path / "a.npz"
    with replacing(path, shared=True) as own, replacing(path) as other:
        own.write_text("own"), other.write_text("other")
    assert path.read_text() == "own" and own.suffix == ".npz"
    with pytest.raises(OSError, match="^half a file$"), replacing(path) as part:
        part.write_text("half")
        raise OSError("half a file")
    assert [f.name for f in tmp_path.iterdir()] == ["a.npz"] and path.read_text() == "own"
