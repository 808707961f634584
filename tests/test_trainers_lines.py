from scrimp_trainers import lines


def test_lines_are_read_back_without_one_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert lines.read(path) == []
    lines.append(path, {"kimg": 1.0})
    lines.append(path, {"kimg": 2.0, "fid": float("inf")})
    with path.open("a") as file:
        file.write('{"kimg": 3')
    assert lines.read(path) == [{"kimg": 1.0}, {"kimg": 2.0, "fid": float("inf")}]
    lines.rewrite(path, lines.read(path)[:1])
    assert path.read_text() == '{"kimg": 1.0}\n'
    assert list(tmp_path.iterdir()) == [path]
