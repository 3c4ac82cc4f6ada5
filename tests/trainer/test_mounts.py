from pathlib import Path

import pytest

from trainer.mounts import mounted, unmounted


@pytest.mark.parametrize(("uri", "folder"), [("gs://bucket/windows/x", "/gcs/bucket/windows/x"), ("/tmp/x", "/tmp/x")])
def test_a_path_of_cloud_storage_is_found_where_it_is_mounted_and_back(uri, folder):
    assert mounted(uri) == Path(folder)
    assert unmounted(folder) == uri


def test_a_relative_path_stays_as_it_is():
    assert mounted("runs/windows") == Path("runs/windows")
    assert unmounted("runs/windows") == "runs/windows"
