"""Confidence sequences that hold at every look, and a detector that alarms soon after a fault and hardly ever before."""

import msgspec
import numpy as np
import pytest

from contracts.errors import InputError
from trainer.sequential import ConfidenceSequence, FaultDetector, confidence_sequence

GRID = np.linspace(-0.9, 0.9, 37).round(3).tolist()


def outcomes(rng: np.random.Generator, mean: float, count: int) -> np.ndarray:
    """Values of -1 and 1 with that mean: no distribution on the range has a larger variance."""
    return np.where(rng.random(count) < (1 + mean) / 2, 1.0, -1.0)


@pytest.mark.parametrize("mean", [-0.5, 0.0, 0.3])
def test_the_bounds_hold_at_every_look(mean: float) -> None:
    """Of 200 runs of 40 looks each, one miss in 10 is allowed; a test at a fixed time would miss in a third of them."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(200):
        sequence = confidence_sequence(-1, 1, GRID)
        for _ in range(40):
            sequence = sequence.add(outcomes(rng, mean, 25))
        low, high = sequence.interval(0.1)
        missed += not low <= mean <= high
    assert missed <= 20


def test_the_bounds_close_in_on_the_mean() -> None:
    rng = np.random.default_rng(2)
    sequence = confidence_sequence(-1, 1, GRID)
    assert sequence.interval(0.05) == (-1, 1)
    sequence = sequence.add(outcomes(rng, 0.25, 5_000))
    low, high = sequence.interval(0.05)
    assert 0.1 <= low < 0.25 < high <= 0.4
    assert sequence.mean == pytest.approx(0.25, abs=0.05)


def test_looks_change_nothing() -> None:
    values = outcomes(np.random.default_rng(3), 0.1, 1_000)
    at_once = confidence_sequence(-1, 1, GRID).add(values)
    step_by_step = confidence_sequence(-1, 1, GRID)
    for piece in np.split(values, [0, 1, 7, 500]):
        step_by_step = step_by_step.add(piece)
    for name in ConfidenceSequence.__struct_fields__:
        np.testing.assert_allclose(getattr(at_once, name), getattr(step_by_step, name), rtol=1e-9, atol=1e-9)


def test_the_state_survives_storage() -> None:
    sequence = confidence_sequence(-1, 1, GRID).add(outcomes(np.random.default_rng(4), 0.1, 100))
    again = msgspec.json.decode(msgspec.json.encode(sequence), type=ConfidenceSequence)
    assert again == sequence


def test_what_is_still_needed_is_about_right() -> None:
    """Predicted after 500 observations, and then found: within a factor of 2.5, for the median of 40 runs."""
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(40):
        sequence = confidence_sequence(-1, 1, GRID).add(outcomes(rng, 0.2, 500))
        predicted, found = sequence.still_needed(0.05, 0.01), 0
        while sequence.interval(0.01)[0] < 0.05 and found < 20_000:
            sequence = sequence.add(outcomes(rng, 0.2, 50))
            found += 50
        ratios.append(max(predicted, 50) / max(found, 50))
    assert 0.4 < np.median(ratios) < 2.5


def test_nothing_is_needed_that_never_comes() -> None:
    sequence = confidence_sequence(-1, 1, GRID)
    assert sequence.still_needed(0.0, 0.05) == np.inf
    assert sequence.add(np.array([0.0])).still_needed(0.0, 0.05) == np.inf


@pytest.mark.parametrize("values", [[1.1], [0.0, np.nan], [-np.inf]])
def test_a_value_out_of_range_is_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match=r"^values: must be from -1 to 1, got .* at \d$"):
        confidence_sequence(-1, 1, GRID).add(np.array(values))
    with pytest.raises(InputError, match=r"^values: must be from -1 to 1, got .* at \d$"):
        FaultDetector(mean=0, low=-1, high=1).add(np.array(values))


@pytest.mark.parametrize("means", [[], [0.5, 0.1], [0.1, 0.1], [-1, 0], [0, 1]])
def test_means_that_do_not_fit_are_refused(means: list[float]) -> None:
    with pytest.raises(InputError, match=r"^means: must increase and lie inside \(-1, 1\), got "):
        confidence_sequence(-1, 1, means)


def test_a_detector_is_quiet_until_the_fault() -> None:
    """At alpha 1e-3, 200 runs of 500 healthy observations each may alarm 100 times at the worst; then the mean falls."""
    rng = np.random.default_rng(6)
    alarmed_before, late = 0, 0
    for _ in range(200):
        detector = FaultDetector(mean=-0.1, low=-1, high=1).add(outcomes(rng, 0.0, 500))
        alarmed_before += detector.alarms(1e-3)
        late += not detector.add(outcomes(rng, -0.6, 150)).alarms(1e-3)
    assert alarmed_before <= 10
    assert late <= 2


def test_a_detector_in_pieces_is_the_same() -> None:
    values = outcomes(np.random.default_rng(7), -0.2, 400)
    at_once = FaultDetector(mean=0, low=-1, high=1).add(values)
    pieces = FaultDetector(mean=0, low=-1, high=1)
    for piece in np.split(values, [0, 1, 50, 399]):
        pieces = pieces.add(piece)
    for name in FaultDetector.__struct_fields__:
        np.testing.assert_allclose(getattr(at_once, name), getattr(pieces, name), rtol=1e-9, atol=1e-9)
