"""The draw of a label: filters equal to those of `transformers`, and draws as frequent as the filters say."""

import numpy as np
import pytest
import torch
from attention_server.domain.messages import Sample
from attention_server.inference.sampling import distribution, draw
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

LABELS = 40
SAMPLES = [
    Sample(),
    Sample(temperature=0.25),
    Sample(temperature=8.0),
    Sample(top_k=1),
    Sample(top_k=5),
    Sample(top_k=LABELS),
    Sample(top_p=0.5),
    Sample(top_p=2**-20),
    Sample(temperature=2.0, top_k=7, top_p=0.75),
    Sample(temperature=0.5, top_k=20, top_p=0.875),
]


def logits(seed: int, scale: float = 3.0) -> np.ndarray:
    """Draw logits, without equal ones."""
    return (scale * np.random.default_rng(seed).standard_normal(LABELS)).astype(np.float32)


def warped(scores: np.ndarray, sample: Sample) -> np.ndarray:
    """Return the probabilities of labels by the logits warpers of `transformers`."""
    found = torch.from_numpy(scores.astype(np.float64))[None]
    warpers = [TemperatureLogitsWarper(sample.temperature)] if sample.temperature != 1 else []
    warpers += [TopKLogitsWarper(sample.top_k)] if sample.top_k else []
    warpers += [TopPLogitsWarper(sample.top_p)] if sample.top_p < 1 else []
    for warper in warpers:
        found = warper(None, found)
    return found[0].softmax(-1).numpy()


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_filters_are_those_of_transformers(sample):
    """Temperature, top k and top p keep the labels, and give the probabilities, of transformers' warpers."""
    for seed in range(5):
        found, expected = distribution(logits(seed), sample), warped(logits(seed), sample)
        assert (found > 0).tolist() == (expected > 0).tolist()
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_equal_logits():
    """Labels that equal the k-th largest stay; of equal ones top p keeps the lower ids; impossible ones stay out."""
    scores = np.array([1, 3, 2, 2, 2, -np.inf], np.float32)
    assert (distribution(scores, Sample(top_k=2)) > 0).tolist() == [False, True, True, True, True, False]
    even = np.zeros(4, np.float32)
    assert distribution(even, Sample(top_p=0.5)).tolist() == [0.5, 0.5, 0, 0]
    assert distribution(scores, Sample(temperature=1e-30)).tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("sample", [Sample(), Sample(temperature=2.0, top_k=7, top_p=0.9)], ids=str)
def test_draws_are_as_frequent_as_the_filters_say(sample):
    """Over 4,000 seeds, each label is drawn as often as its probability says, within five standard deviations."""
    scores, count = logits(1, 1.5), 4000
    expected = distribution(scores, sample)
    drawn = np.bincount([draw(scores, sample, seed, 3) for seed in range(count)], minlength=LABELS) / count
    assert not drawn[expected == 0].any()
    assert (np.abs(drawn - expected) <= 5 * np.sqrt(expected / count) + 1e-9).all()


def test_a_draw_follows_from_its_seed_and_row():
    """One seed and row draw one label; other rows, other seeds and no seed draw anew."""
    scores = np.zeros(2**16, np.float32)  # two draws are equal once in 65,536 times
    found = [draw(scores, Sample(), seed, row) for seed, row in ((5, 0), (5, 1), (2**64 - 1, 0), (None, 0), (None, 0))]
    assert len(set(found)) == len(found)
    assert [draw(scores, Sample(), 5, 0), draw(scores, Sample(), 5, 1)] == found[:2]
