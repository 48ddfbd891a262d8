"""Files of results, with names that are hard to write in any format."""

import contextlib

import pytest

from pyface.io.results import OutputError, ResultFile, failed


def test_result_file_survives_odd_names(tmp_path):
    names = ["plain", "line\nbreak", "\r", "a\rb\r\n", "'\t\x85\u2028", 'quo"te', "com,ma", "\udcff", "ä写"]
    for name in ("a.jsonl", "a.csv"):
        with ResultFile(tmp_path / name) as file:
            for source in names:
                file.write(failed(source, "because"))
        with ResultFile(tmp_path / name, resume=True) as file:
            assert file.done == dict.fromkeys(names, True)
    with pytest.raises(OutputError, match="cannot be written"):
        ResultFile(tmp_path / "a.csv" / "b.csv")


def read_result(source, error=None):
    return {"source": source, "width": 8, "height": 8, "faces": [], "error": error}


def frame_of(source, frame):
    return read_result(source) | {"frame": frame, "time": frame / 4}


@pytest.fixture(params=["a.jsonl", "a.csv"])
def earlier(request, tmp_path):
    """The path of a file in which b.jpg, v.mp4 and t.tar could not be read, w.mp4 broke off, and c.jpg has no copy."""
    path = tmp_path / request.param
    results = [read_result("a.jpg"), failed("b.jpg", "gone"), read_result("c.jpg", "no copy"), failed("v.mp4", "gone")]
    results += [frame_of("w.mp4", 0), failed("w.mp4", "breaks off"), failed("t.tar", "gone"), read_result("z.jpg")]
    write_results(path, results)
    return path


def write_results(path, results):
    with ResultFile(path, overwrite=True) as file:
        for result in results:
            file.write(result)


AGAIN = {"b.jpg": "./b.jpg", "v.mp4": "v.mp4", "t.tar": "t.tar"}
TRIED = [
    read_result("./b.jpg"),
    *(frame_of("v.mp4", k) for k in range(3)),
    failed("v.mp4", "breaks off"),
    *(read_result(f"t.tar/{k}.jpg") for k in range(2)),
]


def test_results_of_another_try_take_the_places_of_failed_ones(earlier):
    with ResultFile(earlier, resume=True) as file:
        assert list(file.failed) == ["b.jpg", "v.mp4", "t.tar"]
        assert file.done == {
            **dict.fromkeys(["a.jpg", "z.jpg"], False), **dict.fromkeys([*AGAIN, "c.jpg", "w.mp4"], True)
        }  # fmt: skip
        file.retry(AGAIN)
        for result in [*TRIED, read_result("new.jpg")]:
            file.write(result)
    expected = earlier.with_name(f"expected{earlier.suffix}")
    write_results(
        expected,
        [
            read_result("a.jpg"), TRIED[0], read_result("c.jpg", "no copy"), *TRIED[1:5], frame_of("w.mp4", 0),
            failed("w.mp4", "breaks off"), *TRIED[5:], read_result("z.jpg"), read_result("new.jpg"),
        ],
    )  # fmt: skip
    assert earlier.read_bytes() == expected.read_bytes()


def test_an_interrupted_try_leaves_each_source_as_it_was_or_whole(earlier):
    """Whenever it ends, so that none of a video's frames are missing from a file that looks complete."""
    before = earlier.read_bytes()
    sources = {}
    for number in range(len(TRIED) + 1):
        earlier.write_bytes(before)
        with contextlib.suppress(KeyboardInterrupt), ResultFile(earlier, resume=True) as file:
            file.retry(AGAIN)
            for result in TRIED[:number]:
                file.write(result)
                assert earlier.read_bytes() == before  # what a kill would leave
            raise KeyboardInterrupt
        with ResultFile(earlier, resume=True) as file:
            sources[number] = list(file.failed)
            assert len(file.done) == len({*file.done, *file.failed}) == 7
        assert list(earlier.parent.iterdir()) == [earlier]
    assert [sources[k] for k in (0, 1, 2, 4, 5, 6, 7)] == [
        *[["b.jpg", "v.mp4", "t.tar"]] * 2, *[["v.mp4", "t.tar"]] * 3, ["t.tar"], ["t.tar"]
    ]  # fmt: skip


def test_a_source_without_results_keeps_its_failed_one(earlier):
    with ResultFile(earlier, resume=True) as file:
        file.retry(AGAIN)
        file.write(read_result("v.mp4"))
        file.write(read_result("new.jpg"))
    with ResultFile(earlier, resume=True) as file:
        assert list(file.failed) == ["b.jpg", "t.tar"]
        assert list(file.done)[-1] == "new.jpg"
