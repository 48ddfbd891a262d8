"""`pyface detect` on URLs: images, videos, archives, folders and patterns, and what is wrong with them."""

import http.server
import io
import json
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pyface.io import remote

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def web(tmp_path):
    """Serves the folder tmp_path/web; /silent never answers, /broken has an error, /photo?id=N has no suffix."""
    folder = tmp_path / "web"
    folder.mkdir()
    closing = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):
            if self.path.startswith("/silent"):
                closing.wait(20)
            elif self.path.startswith("/broken"):
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        closing.set()
        server.shutdown()


@pytest.fixture
def bucket():
    """A bucket in fsspec's file system in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def test_images_and_what_is_wrong_with_addresses(run, web, write_grey, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 0.5)
    write_grey("web/a.png", 80)
    Path("web/photo").write_bytes(write_grey("b.png", 40).read_bytes())
    Path("web/words.jpg").write_text("words " * 9)
    names = ["a.png", "gone.jpg", "silent.jpg", "broken.png", "photo?id=3", "words.jpg"]
    addresses = [*(f"{web}/{name}" for name in names), "http://127.0.0.1:9/a.jpg", f"{web}/a.png?again"]
    lines = lines_of(run("detect", *addresses, "--save", "out", status=1).stdout)
    assert [line["source"] for line in lines] == addresses
    assert [len(line["faces"]) for line in lines] == [2, 0, 0, 0, 1, 0, 0, 2]
    assert [line["error"] for line in lines[1:4]] == [
        f"{web}/gone.jpg: there is no such file",
        f"{web}/silent.jpg: no answer within 0.5 seconds",
        f"{web}/broken.png: the server answered 503 Service Unavailable",
    ]
    assert lines[5]["error"].startswith(f"{web}/words.jpg: ")
    assert lines[6]["error"].startswith("http://127.0.0.1:9/a.jpg: Cannot connect to host 127.0.0.1:9")
    names = ["127.0.0.1-a (2).png", "127.0.0.1-a.png", "127.0.0.1-photo.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == [".pyface", *names]


def test_covered_copies(run, web, write_grey):
    write_grey("web/a.jpg", 80)
    run("detect", f"{web}/a.jpg", "--save", "out", "--box")
    assert Path("out/127.0.0.1-a.jpg").is_file()


def test_videos_are_told_from_images(run, web, write_grey, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    from pyface.io.video import VideoWriter, video

    with VideoWriter(tmp_path / "video.mp4") as writer:
        for k in range(3):
            writer.write(np.full((32, 48, 3), 80, np.uint8), k / 4)
    Path("web/live").write_bytes(Path("video.mp4").read_bytes())
    lines = lines_of(run("detect", f"{web}/live", "--save", "out").stdout)
    assert [(line["frame"], len(line["faces"])) for line in lines] == [(0, 2), (1, 2), (2, 2)]
    assert len(list(video("out/127.0.0.1-live.png.mp4"))) == 3
    run("detect", f"{web}/live", "--output", "whole.jsonl")
    whole = Path("whole.jsonl").read_bytes()
    Path("part.jsonl").write_bytes(whole[:-20])
    run("detect", f"{web}/live", "--output", "part.jsonl", "--resume")
    assert Path("part.jsonl").read_bytes() == whole
    fsspec.filesystem("memory").pipe("/b/video.mp4", Path("video.mp4").read_bytes())
    assert len(lines_of(run("detect", "memory://b/video.mp4").stdout)) == 3


def test_archives(run, web, bucket, write_grey):
    image = write_grey("b.png", 80).read_bytes()
    encoded = {"tar": io.BytesIO(), "zip": io.BytesIO()}
    with tarfile.open(fileobj=encoded["tar"], mode="w") as archive:
        info = tarfile.TarInfo("x/1.png")
        info.size = len(image)
        archive.addfile(info, io.BytesIO(image))
    with zipfile.ZipFile(encoded["zip"], "w") as archive:
        archive.writestr("x/1.png", image)
    for kind, data in encoded.items():
        Path(f"web/a.{kind}").write_bytes(data.getvalue())
        bucket.pipe(f"/b/a.{kind}", data.getvalue())
    addresses = [f"{web}/a.tar", "memory://b/a.tar", "memory://b/a.zip", f"{web}/a.zip", f"{web}/gone.tar"]
    lines = lines_of(run("detect", *addresses, "--save", "out", status=1).stdout)
    assert [line["source"] for line in lines] == [*(f"{address}/x/1.png" for address in addresses[:3]), *addresses[3:]]
    assert lines[3]["error"].endswith("(its server does not send parts of files; download it first)")
    assert lines[4]["error"].endswith("gone.tar cannot be read as an archive (there is no such file)")
    assert Path("out/b-a.zip/x/1.png").is_file()


def test_folders_and_patterns(run, web, bucket, write_grey, assert_one_sentence):
    image = write_grey("web/a.png", 80).read_bytes()
    for name in ("in/b.png", "in/a.png", "in/notes.txt", "in/sub/c.png", "key"):
        bucket.pipe(f"/b/{name}", image)

    def sources(*arguments):
        return [line["source"].replace(":///", "://") for line in lines_of(run("detect", *arguments).stdout)]

    assert sources("memory://b/in") == ["memory://b/in/a.png", "memory://b/in/b.png"]
    assert sources("memory://b/in/", "-r", "--exclude", "b*") == ["memory://b/in/a.png", "memory://b/in/sub/c.png"]
    assert sources("memory://b/*/b.png") == ["memory://b/in/b.png"]
    assert sources("memory://b/key") == ["memory://b/key"]
    assert sources(f"{web}/*.png") == [f"{web}/a.png"]
    assert_one_sentence(run("detect", "memory://b/none/", status=2), "memory://b/none/: there are no images")
    assert_one_sentence(run("detect", "memory://b/*.gif", status=2), "no file matches this pattern")
    assert_one_sentence(
        run("detect", "http://127.0.0.1:9/*.png", status=2), "http://127.0.0.1:9/*.png cannot be listed: "
    )


def test_resume_and_shards(run, bucket, write_grey):
    image = write_grey("a.png", 80).read_bytes()
    for k in range(30):
        bucket.pipe(f"/b/{k}.png", image)
    whole = run("detect", "memory://b/*.png", "--output", "whole.jsonl") and Path("whole.jsonl").read_bytes()
    Path("part.jsonl").write_bytes(whole[: len(whole) // 2])
    run("detect", "memory://b/*.png", "--output", "part.jsonl", "--resume")
    assert Path("part.jsonl").read_bytes() == whole
    parts = [lines_of(run("detect", "memory://b/*.png", "--shard", f"{k}/3").stdout) for k in (1, 2, 3)]
    assert sorted(map(len, parts))[0] > 0
    assert sorted(line["source"] for part in parts for line in part) == [
        line["source"] for line in lines_of(whole.decode())
    ]


def test_missing_packages_are_named(run, write_grey, monkeypatch):
    write_grey("a.png", 80)
    for name in ("s3fs", "gcsfs", "aiohttp"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    addresses = ["s3://bucket/a.jpg", "gs://bucket/a.jpg", "nowhere://bucket/a.jpg"]
    lines = lines_of(run("detect", *addresses, "a.png", status=1).stdout)
    assert [line["error"] for line in lines] == [
        "s3://bucket/a.jpg: s3:// URLs need another package: pip install s3fs",
        "gs://bucket/a.jpg: gs:// URLs need another package: pip install gcsfs",
        "nowhere://bucket/a.jpg: fsspec does not support nowhere:// URLs (Protocol not known: nowhere)",
        None,
    ]


def test_read_image_takes_addresses(bucket, astronaut):
    import pyface

    bucket.pipe("/b/a.jpg", astronaut.read_bytes())
    assert pyface.read_image("memory://b/a.jpg").shape == (512, 512, 3)
    with pytest.raises(pyface.ImageError, match=r"memory://b/none\.jpg: there is no such file"):
        pyface.read_image("memory://b/none.jpg")
