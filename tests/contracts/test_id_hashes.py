import numpy as np

from contracts.id_hashes import ID_BYTES, held_back, lasting, mixed


def ids(texts):
    return np.array(texts, f"S{ID_BYTES}").view(np.uint8).reshape(-1, ID_BYTES)


def test_ids_that_differ_in_any_digit_are_spread_evenly():
    first = "019b76da-a800-7000-8000-000000000000"
    for place in range(ID_BYTES):
        if first[place] != "-":
            hashes = mixed(ids([f"{first[:place]}{digit:x}{first[place + 1 :]}" for digit in range(16)]))
            assert len(set(hashes.tolist())) == 16
    hashes = mixed(ids([f"019b76da-a800-7000-8000-{number:012x}" for number in range(100_000)]))
    assert len(np.unique(hashes)) == 100_000
    for divisor in (2, 7, 64, 1000):
        expected = 100_000 / divisor
        assert (
            np.abs(np.bincount((hashes % divisor).astype(int), minlength=divisor) - expected).max() < 6 * expected**0.5
        )


def test_it_is_the_same_in_every_process_and_batch():
    texts = ["019b76da-a800-7000-8000-000000000001", "019b76da-a800-7d9a-a03a-8495c70e2883"]
    assert mixed(ids(texts)).tolist() == [mixed(ids([text]))[0] for text in texts]
    assert mixed(ids(texts[:1])).tolist() == [16583986320729396851]
    assert len(mixed(ids([]))) == 0


def test_the_lasting_hash_stays_the_same_and_holds_back_the_share():
    assert lasting([]).tolist() == []
    texts = [f"019b76da-a800-7000-8000-{number:012x}".encode() for number in range(20_000)]
    hashes = lasting(texts)
    assert hashes[:1].tolist() == lasting(texts[:1]).tolist()
    assert abs(held_back(hashes, 0.1).mean() - 0.1) < 0.01
    assert not held_back(hashes, 0.0).any()
    assert (held_back(hashes, 0.2) | ~held_back(hashes, 0.1)).all()  # a larger share holds back the same ones, and more
