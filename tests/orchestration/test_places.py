from orchestration.places import Places, append_line, replace_file, whole_lines


def test_everything_is_below_the_root(tmp_path):
    places = Places(tmp_path)
    assert all(path.is_relative_to(tmp_path) for path in vars(places).values())
    assert len(set(vars(places).values())) == len(vars(places))


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "champion.json"
    replace_file(path, b"old")
    with path.open("rb") as reader:
        replace_file(path, b"new content")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new content"
    assert [found.name for found in tmp_path.iterdir()] == ["champion.json"]


def test_lines_are_appended_and_a_torn_one_is_cut_off(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert whole_lines(path) == []
    append_line(path, b"one")
    append_line(path, b"two")
    with path.open("ab") as file:
        file.write(b"thr")
    assert whole_lines(path) == [b"one", b"two"]
    append_line(path, b"three")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    path.write_bytes(b"torn")
    assert whole_lines(path) == []
    append_line(path, b"one")
    assert path.read_bytes() == b"one\n"
