"""Files on a disk that is full, here a limit of the file's size."""

import errno
import resource
import signal

import pytest

from pyface.io.files import write_whole
from pyface.io.results import ResultFile, failed


@pytest.fixture
def small_disk():
    """A function that sets the largest size of a file, in bytes: at least 1 MB, since pytest's output is a file too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_no_half_file_stays(tmp_path, small_disk):
    path = tmp_path / "a" / "face.png"
    small_disk(1_000_000)
    write_whole(path, bytes(1_000_000))
    assert path.stat().st_size == 1_000_000
    with pytest.raises(OSError, match="File too large") as error:
        write_whole(path, bytes(1_000_001))
    assert error.value.filename == str(path)
    assert not path.exists()


@pytest.mark.parametrize("name", ["faces.jsonl", "faces.csv"])
def test_results_that_did_not_fit_can_be_continued(tmp_path, small_disk, name):
    path, results = tmp_path / name, [failed(f"{k}.jpg", "x" * 100_000) for k in range(12)]
    small_disk(1_050_000)
    with ResultFile(path) as file:
        for result in results[:10]:
            file.write(result)
        with pytest.raises(OSError, match="File too large") as error:
            file.write(results[10])
    assert error.value.filename == str(path)
    assert path.stat().st_size == 1_050_000  # the last result is cut
    small_disk(2_000_000)
    with ResultFile(path, resume=True) as file:
        assert list(file.done) == [f"{k}.jpg" for k in range(10)]
        for result in results[10:]:
            file.write(result)
    with ResultFile(path, resume=True) as file:
        assert list(file.done) == [f"{k}.jpg" for k in range(12)]


@pytest.mark.parametrize(
    ("size", "last"), [pytest.param(600_000, "1.jpg", id="within"), pytest.param(1_000_000, "new.jpg", id="behind")]
)
def test_another_try_that_did_not_fit_leaves_the_results(tmp_path, small_disk, size, last):
    path = tmp_path / "faces.jsonl"
    with ResultFile(path) as file:
        for k in range(3):
            file.write(failed(f"{k}.jpg", "x" * 400_000))
    before = path.read_bytes()
    small_disk(len(before) + 400_000)

    def try_again():
        with ResultFile(path, resume=True) as file:
            file.retry({"1.jpg": "1.jpg"})
            file.write(failed("1.jpg", "x" * size))
            file.write(failed(last, "x" * 1_200_000))

    with pytest.raises(OSError, match="File too large") as error:
        try_again()
    assert error.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_deleted_file_of_results_is_an_error(tmp_path):
    path = tmp_path / "faces.jsonl"
    with ResultFile(path) as file:
        file.write(failed("0.jpg", "x"))
        path.unlink()
        with pytest.raises(OSError, match="deleted during the run") as error:
            file.write(failed("1.jpg", "x"))
    assert (error.value.errno, error.value.filename) == (errno.ENOENT, str(path))
