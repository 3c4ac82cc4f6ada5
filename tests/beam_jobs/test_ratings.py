import re
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.ratings import Person, RatedMovie, load_ratings
from contracts.errors import InputError

U_DATA = "7\t30\t4\t881250949\n7\t10\t3\t881250950\n9\t30\t1\t881250951\n"
U_ITEM = (
    "10|Misérables, Les (1995)|01-Jan-1995||http://x|0|0|0|0|0|0|0|0|1|0|0|0|1|0|0|0|0|0|0\n"
    "30|No year|||http://y|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
)
RATINGS_CSV = "userId,movieId,rating,timestamp\n1,5,0.5,100\n99999999999999999999,4,4.5,101\n2,5,5.0,102\n"
MOVIES_CSV = (
    'movieId,title,genres\n4,"Good, the Bad (1966)",Western|Drama\n5,Plain,(no genres listed)\n6,Unrated,Drama\n'
)


def folder(path: Path, **files: str) -> str:
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text, "latin-1" if name.startswith("u_") else "utf-8")
    return str(path)


def test_movielens_100k_form(tmp_path: Path) -> None:
    ratings = load_ratings(folder(tmp_path, u_data=U_DATA, u_item=U_ITEM))
    assert ratings.user_ids == [7, 9]
    assert ratings.movies == [
        RatedMovie(10, "Misérables, Les", 1995, ("Drama", "Musical")),
        RatedMovie(30, "No year", None, ()),
    ]
    assert ratings.user.tolist() == [0, 0, 1]
    assert ratings.movie.tolist() == [0, 1, 1]
    assert ratings.rating.tolist() == [3, 4, 1]
    assert ratings.timestamp.tolist() == [881250950, 881250949, 881250951]


def test_what_is_known_of_users(tmp_path: Path) -> None:
    assert load_ratings(folder(tmp_path, u_data=U_DATA)).people is None
    known = load_ratings(folder(tmp_path, u_data=U_DATA, u_user="7|24|M|technician|85711\n8|53|F|other|94043\n")).people
    assert known == {7: Person(24, "M", "technician"), 8: Person(53, "F", "other")}


def test_csv_form_maps_ids_of_any_size_and_keeps_half_stars(tmp_path: Path) -> None:
    ratings = load_ratings(folder(tmp_path, ratings_csv="\ufeff" + RATINGS_CSV, movies_csv=MOVIES_CSV))
    assert ratings.user_ids == [1, 2, 99999999999999999999]
    assert ratings.movies == [
        RatedMovie(4, "Good, the Bad", 1966, ("Western", "Drama")),
        RatedMovie(5, "Plain", None, ()),
    ]
    assert ratings.rating.tolist() == [0.5, 5.0, 4.5]


def test_titles_are_optional_and_columns_may_be_in_any_order(tmp_path: Path) -> None:
    ratings = load_ratings(folder(tmp_path, ratings_csv="rating,timestamp,movieId,userId\n3.5,7,1,2\n"))
    assert ratings.movies == [RatedMovie(1, "", None, ())]
    assert ratings.user_ids == [2]
    assert ratings.rating.tolist() == [3.5]


def test_of_a_movie_rated_twice_the_latest_counts(tmp_path: Path) -> None:
    rows = "1\t1\t5\t200\n1\t2\t3\t50\n1\t1\t2\t100\n1\t2\t4\t50\n"
    ratings = load_ratings(folder(tmp_path, u_data=rows))
    assert ratings.movie.tolist() == [0, 1]
    assert ratings.rating.tolist() == [5, 4]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"u_data": "1\t2\t3\t4\n1\t2\t3\n"}, "u.data, line 2: 4 tab-separated columns .* got 3"),
        ({"u_data": "1\t2\t3\t4\n\n"}, "u.data, line 2: 4 tab-separated columns .* got 1"),
        ({"u_data": "1_0\t2\t3\t4\n"}, "u.data, line 1, column 1: a whole-number user id expected, got '1_0'"),
        ({"u_data": "1\t2\t0_1\t4\n"}, "u.data, line 1, column 3: a rating .* got '0_1'"),
        ({"u_data": "1" * 129 + "\t2\t3\t4\n"}, "line 1, column 1: a whole-number user id of at most 128 characters"),
        ({"u_data": "1\tx\t3\t4\n"}, "u.data, line 1, column 2: a whole-number movie id expected, got 'x'"),
        (
            {"u_data": "1\t2\t3\t4\n1\t2\t6\t4\n"},
            "u.data, line 2, column 3: a rating from 0.5 to 5.0 expected, got '6'",
        ),
        ({"u_data": "1\t2\tnan\t4\n"}, "line 1, column 3: a rating .* got 'nan'"),
        ({"u_data": "1\t2\t3\t1e3\n"}, "line 1, column 4: a whole-number timestamp of 64 bits expected, got '1e3'"),
        (
            {"u_data": "1\t2\t3\t4\n1\t5\t3\t" + "9" * 30},
            "u.data, line 2, column 4: a whole-number timestamp of 64 bits",
        ),
        (
            {"ratings_csv": RATINGS_CSV + f"1,2,3,-{2**63 + 1}\n"},
            "ratings.csv, line 5, column 4: a whole-number timestamp",
        ),
        ({"u_data": ""}, "holds no ratings"),
        ({"u_data": U_DATA, "u_item": "1|A\n"}, r"u.item, line 1: 24 columns separated by \| expected, got 2"),
        ({"u_data": U_DATA, "u_user": "7|24|M\n"}, r"u.user, line 1: 5 columns separated by \| .* got 3"),
        (
            {"u_data": U_DATA, "u_user": "7|24|M|other|1\n8|-1|F|other|1\n"},
            "u.user, line 2, column 2: an age from 0 to 150 expected, got '-1'",
        ),
        ({"ratings_csv": RATINGS_CSV + "1,2,3\n"}, "ratings.csv, line 5: 4 columns expected, got 3"),
        ({"ratings_csv": "userId,movieId,rating\n1,2,3\n"}, "ratings.csv, line 1: no column 'timestamp'"),
        ({"ratings_csv": ""}, "ratings.csv, line 1: no column 'userId'"),
        ({"ratings_csv": RATINGS_CSV + '1,2,"3\n'}, "ratings.csv, line 5: unexpected end of data"),
        ({"ratings_csv": RATINGS_CSV, "movies_csv": "movieId,title,genres\nx,y,z\n"}, "movies.csv, line 2, column 1"),
        ({"u_item": U_ITEM}, "has neither u.data .* nor ratings.csv"),
    ],
)
def test_malformed_input_names_file_line_and_column(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load_ratings(folder(tmp_path, **files))
    assert "\n" not in str(raised.value)


def test_csv_column_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2, column 1: a rating from"):
        load_ratings(folder(tmp_path, ratings_csv="rating,timestamp,movieId,userId\nx,7,1,2\n"))


def test_not_utf8(tmp_path: Path) -> None:
    rows = b"userId,movieId,rating,timestamp\n" + b"1,2,3,4\n" * 5_000 + b"1,2,3,\xff\n"  # more than is decoded at once
    (tmp_path / "ratings.csv").write_bytes(rows)
    with pytest.raises(InputError, match=r"ratings\.csv, line 5002, column 4: not UTF-8"):
        load_ratings(str(tmp_path))


@pytest.mark.parametrize(("name", "message"), [("nowhere", "does not exist"), ("file", "is not a folder")])
def test_no_folder(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=re.escape(message)):
        load_ratings(str(tmp_path / name))


def test_sample_is_there_without_a_download() -> None:
    ratings = load_ratings("sample")
    assert (len(ratings.rating), len(ratings.user_ids), len(ratings.movies)) == (100_004, 671, 9_066)
    assert (
        RatedMovie(1, "Toy Story", 1995, ("Adventure", "Animation", "Children", "Comedy", "Fantasy")) in ratings.movies
    )
    assert set(np.unique(ratings.rating)) == set(np.arange(1, 11) / 2)


@pytest.mark.movielens
def test_movielens_100k(movielens_100k: Path) -> None:
    ratings = load_ratings(str(movielens_100k))
    assert (len(ratings.rating), len(ratings.user_ids), len(ratings.movies)) == (100_000, 943, 1_682)
    assert ratings.movies[0] == RatedMovie(1, "Toy Story", 1995, ("Animation", "Children's", "Comedy"))


def test_tensorflow_datasets_form() -> None:
    tf = pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    rows = {
        "user_id": ["12", "3", "12"],
        "movie_id": ["50", "50", "8"],
        "movie_title": ["Star Wars (1977)", "Star Wars (1977)", "Babe (1995)"],
        "user_rating": [5.0, 4.0, 3.0],
        "timestamp": [30, 20, 10],
        "movie_genres": np.array([[0, 15], [0, 15], [4, 7]]),
    }
    # Only the download is replaced: builder, features and names are those of the real data set.
    with tfds.testing.mock_data(as_dataset_fn=lambda *_, **__: tf.data.Dataset.from_tensor_slices(rows)):
        ratings = load_ratings("tfds:movielens/100k-ratings")
    assert ratings.user_ids == [3, 12]
    assert ratings.movies == [
        RatedMovie(8, "Babe", 1995, ("Comedy", "Drama")),
        RatedMovie(50, "Star Wars", 1977, ("Action", "Sci-Fi")),
    ]
    assert ratings.rating.tolist() == [4, 3, 5]


@pytest.mark.parametrize("name", ["nothing/like-it", "mnist", "movielens/no-such-size"])
def test_not_a_set_of_ratings(name: str) -> None:
    with pytest.raises(InputError, match=f"--ratings tfds:{name}: no"):
        load_ratings(f"tfds:{name}")
