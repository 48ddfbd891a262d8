"""Files of results, with names that are hard to write in any format."""

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
