from scrimp_trainers.common import metrics_log


def test_lines_are_read_back_without_one_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics_log.read_rows(path) == []
    metrics_log.append_row(path, {"kimg": 1.0})
    metrics_log.append_row(path, {"kimg": 2.0, "fid": float("inf")})
    with path.open("a") as file:
        file.write('{"kimg": 3')
    assert metrics_log.read_rows(path) == [{"kimg": 1.0}, {"kimg": 2.0, "fid": float("inf")}]
    metrics_log.write_rows(path, metrics_log.read_rows(path)[:1])
    assert path.read_text() == '{"kimg": 1.0, "crc32": "38f2dd73"}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_changed_line_is_named_and_never_read_and_a_torn_last_one_is_neither(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for kimg in (1.0, 2.0, 3.0):
        metrics_log.append_row(path, {"kimg": kimg, "fid": 20.5})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"20.5", b"10.5", 1))
    assert metrics_log.scan_rows(path) == (
        [{"kimg": 2.0, "fid": 20.5}, {"kimg": 3.0, "fid": 20.5}],
        f"{path}: damaged in line 1",
    )
    path.write_bytes(whole.replace(b"\n", b"\x0c", 1))
    assert metrics_log.scan_rows(path) == ([{"kimg": 3.0, "fid": 20.5}], f"{path}: damaged in line 1")
    path.write_bytes(b'{"kimg": 1.0}\n' + whole[:-1])
    assert metrics_log.scan_rows(path) == (
        [{"kimg": 1.0, "fid": 20.5}, {"kimg": 2.0, "fid": 20.5}],
        f"{path}: damaged in line 1",
    )
