"""The check of the weights names what is wrong and what to do."""

import hashlib

import pytest
from retrieval_demo.errors import DemoError
from retrieval_demo.model import check_hashes


def test_the_right_file_passes_a_changed_or_missing_one_does_not(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    expected = {path.name: hashlib.sha256(b"weights").hexdigest()}
    check_hashes(tmp_path, expected, "reinstall")
    path.write_bytes(b"weight5")
    with pytest.raises(DemoError, match=r"model\.safetensors has sha256 .*: reinstall"):
        check_hashes(tmp_path, expected, "reinstall")
    path.unlink()
    with pytest.raises(DemoError, match=r"lack model\.safetensors: reinstall"):
        check_hashes(tmp_path, expected, "reinstall")
