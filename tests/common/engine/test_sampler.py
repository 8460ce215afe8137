"""The sampler against transformers' processors, the softmax, and itself in other company."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from common.engine.penalties import apply_penalties
from common.engine.sampler import Sampler, describe
from common.engine.sequence import Sequence
from common.engine.truncation import NUM_BEST, cut_off
from tests.common.engine.standin_model import make_request

VOCAB = 500
EOS = 7
CPU = torch.device("cpu")
NO_IDS = torch.LongTensor()  # what these processors ignore


def logits_of(rows, vocab=VOCAB, seed=0, scale=3.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def sequence_of(prompt=(1, 2, 3), outputs=(), max_tokens=50, **sampling):
    request = make_request("r", list(prompt), max_tokens, outputs=tuple(outputs), **sampling)
    return Sequence(request, 0, frozenset({EOS}))


def sample(logits, sequences):
    sampler = Sampler(frozenset({EOS}), CPU)
    for sequence in sequences:
        if sequence.edits is None:
            sampler.prepare(sequence)
    return sampler.sample(logits.clone(), sequences)


def edited(row, sequence):
    """The row after the rare options and penalties, before temperature."""
    Sampler(frozenset({EOS}), CPU).prepare(sequence)
    row = row.clone()
    if sequence.edits:
        sequence.edits.apply(row)
    if sequence.penalties:
        penalise(row, sequence)
    return row


def penalise(row, sequence):
    sequence.penalties.catch_up(sequence.tokens[: sequence.num_tokens])
    apply_penalties(row[None], {0: sequence.penalties})


# --- against transformers ------------------------------------------------------------------------


def truncated(x, min_p=0.0, top_k=0, top_p=1.0):
    """Options: one for all rows, or a list."""
    options = [
        torch.tensor(value if isinstance(value, list) else [value] * len(x))
        for value in (min_p, top_k, top_p)
    ]
    return x.masked_fill(x < cut_off(x, *options)[:, None], -math.inf)


def each(make, values, x):
    rows = [make(value)(NO_IDS, row[None])[0] for value, row in zip(values, x, strict=True)]
    return torch.stack(rows)


def test_top_k_keeps_what_transformers_keeps():
    ks = [1, 2, 17, NUM_BEST, NUM_BEST + 1, VOCAB, VOCAB + 9]
    x = logits_of(len(ks))
    assert torch.equal(truncated(x, top_k=ks), each(TopKLogitsWarper, ks, x))


@pytest.mark.parametrize("vocab", [NUM_BEST // 2, 8 * NUM_BEST])
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_top_p_keeps_what_transformers_keeps(vocab, scale):
    ps = [0.01, 0.3, 0.7, 0.95, 0.999]
    x = logits_of(5, vocab, scale=scale)
    assert torch.equal(truncated(x, top_p=ps), each(TopPLogitsWarper, ps, x))


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_min_p_keeps_what_transformers_keeps(scale):
    ps = [0.001, 0.05, 0.5, 1.0]
    x = logits_of(4, scale=scale)
    assert torch.equal(truncated(x, min_p=ps), each(MinPLogitsWarper, ps, x))


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("min_p", [0.0, 0.001, 0.3])
@pytest.mark.parametrize("top_k", [0, 40, 2 * NUM_BEST])
@pytest.mark.parametrize("top_p", [0.5, 0.97, 1.0])
def test_all_three_one_after_the_other(scale, min_p, top_k, top_p):
    x = logits_of(2, 4 * NUM_BEST, scale=scale)
    expected = x
    if min_p:
        expected = MinPLogitsWarper(min_p)(NO_IDS, expected)
    if top_k:
        expected = TopKLogitsWarper(top_k)(NO_IDS, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(NO_IDS, expected)
    assert torch.equal(truncated(x, min_p, top_k, top_p), expected)


def test_tokens_as_likely_as_the_last_stay():
    x = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert truncated(x, top_k=2).isfinite().tolist() == [[True] * 4 + [False]]
    assert truncated(x, top_p=0.6).isfinite().tolist() == [[True] * 4 + [False]]


def test_repetition_penalty_over_prompt_and_output():
    x = logits_of(1)
    prompt, outputs = (5, 9, 9, 400), (9, 33)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*prompt, *outputs]]), x.clone())
    got = edited(x[0], sequence_of(prompt, outputs, repetition_penalty=1.7))
    torch.testing.assert_close(got, expected[0], rtol=1e-6, atol=0)


def test_bad_words_in_the_output():
    words = [[11], [40, 41], [50, 51, 52]]
    x = logits_of(1)
    for outputs in ([], [40], [50, 51], [51], [41, 40, 50]):
        processor = NoBadWordsLogitsProcessor(words, eos_token_id=[VOCAB + 1])
        expected = processor(torch.tensor([outputs], dtype=torch.long), x.clone())
        bad_words = tuple(tuple(word) for word in words)
        got = edited(x[0], sequence_of([40, 50], outputs, bad_words=bad_words))
        assert torch.equal(got, expected[0])


# --- against the definition ----------------------------------------------------------------------


def test_presence_and_frequency_count_the_output_only():
    x = logits_of(1)[0]
    outputs = (8, 8, 8, 12)
    sequence = sequence_of((3, 8), outputs, presence_penalty=0.5, frequency_penalty=0.25)
    got = edited(x, sequence)
    expected = x.clone()
    expected[8] -= 0.5 + 3 * 0.25
    expected[12] -= 0.5 + 0.25
    torch.testing.assert_close(got, expected)


def test_penalties_grow_with_the_sequence():
    x = logits_of(1)[0]
    options = {"repetition_penalty": 1.3, "frequency_penalty": 0.7, "presence_penalty": -0.2}
    growing = sequence_of((1, 2), (), 500, **options)
    edited(x, growing)
    for token in (5, 2, 5, *range(100, 300)):
        growing.append(token)
        row = x.clone()
        penalise(row, growing)
    grown = sequence_of((1, 2), (5, 2, 5, *range(100, 300)), 500, **options)
    assert torch.equal(row, edited(x, grown))


def test_min_tokens_forbids_every_end():
    x = logits_of(1)[0]
    early = sequence_of(outputs=(4,), min_tokens=2, stop_token_ids=(30,))
    assert edited(x, early)[[EOS, 30]].tolist() == [-math.inf, -math.inf]
    late = sequence_of(outputs=(4, 4), min_tokens=2, stop_token_ids=(30,))
    assert torch.equal(edited(x, late), x)


def test_allowed_ids_and_bias():
    x = logits_of(1)[0]
    got = edited(x, sequence_of(allowed_token_ids=(3, 8), logit_bias=((8, 100.0), (9, 100.0))))
    expected = torch.full_like(x, -math.inf)
    expected[3], expected[8] = x[3], x[8] + 100
    assert torch.equal(got, expected)
    assert sample(x[None], [sequence_of(logit_bias=((77, 100.0),))]).token_ids == [77]


def test_greedy_is_the_largest_and_the_lowest_id_of_equals():
    x = torch.zeros(2, VOCAB)
    x[0, [300, 20]] = 1.0
    assert sample(x, [sequence_of(), sequence_of()]).token_ids == [20, 0]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.6}])
def test_draws_follow_the_distribution(sampling):
    """Chi-square over one position, many seeds."""
    vocab, draws = 10, 4000
    row = logits_of(1, vocab, seed=3, scale=1.0)
    x = row / sampling.get("temperature", 1.0)
    if "top_k" in sampling:
        x = TopKLogitsWarper(sampling["top_k"])(NO_IDS, x)
    if "top_p" in sampling:
        x = TopPLogitsWarper(sampling["top_p"])(NO_IDS, x)
    expected = x.double().softmax(-1)[0].numpy() * draws
    sequences = [
        sequence_of(seed=seed, **({"temperature": 1.0} | sampling)) for seed in range(draws)
    ]
    counts = np.bincount(sample(row.expand(draws, -1), sequences).token_ids, minlength=vocab)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)  # beyond five sigma


def test_positions_draw_independently():
    row = logits_of(1, scale=0.5)
    tokens = [
        sample(row, [sequence_of(outputs=(1,) * n, temperature=1.0, seed=5)]).token_ids[0]
        for n in range(40)
    ]
    assert len(set(tokens)) > 20


def test_a_tiny_temperature_is_greedy():
    x = logits_of(3)
    sequences = [sequence_of(temperature=t, seed=1) for t in (1e-300, 1e-9, 1e-5)]
    assert sample(x, sequences).token_ids == x.argmax(-1).tolist()


def test_logprobs_are_of_the_raw_logits():
    x = logits_of(2)
    sequences = [
        sequence_of(logprobs=0, logit_bias=((9, 100.0),)),
        sequence_of(logprobs=3, temperature=0.7, seed=4),
    ]
    samples = sample(x, sequences)
    expected = x.double().log_softmax(-1)
    assert samples.token_ids[0] == 9
    for row, number in ((0, 0), (1, 3)):
        token, got = samples.token_ids[row], samples.logprobs[row]
        assert got.logprob == pytest.approx(expected[row, token].item(), abs=1e-5)
        assert got.rank == 1 + int((x[row] > x[row, token]).sum())
        best = expected[row].topk(number)
        assert [token for token, _ in got.top] == best.indices.tolist()
        assert [logprob for _, logprob in got.top] == pytest.approx(best.values.tolist(), abs=1e-5)


# --- rows do not know each other -----------------------------------------------------------------

STORM: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9, "seed": 5},
    {"temperature": 1.3, "top_k": 20, "seed": 6, "logprobs": 5},
    {"temperature": 1.0, "top_k": 200, "top_p": 0.5, "min_p": 0.01, "seed": -7},
    {"temperature": 1.0, "top_p": 0.9999, "seed": 1 << 62},
    {"repetition_penalty": 1.2, "presence_penalty": 0.3, "logprobs": 2},
    {"temperature": 0.9, "allowed_token_ids": (4, 5, 6, 7), "seed": 3, "min_tokens": 5},
    {"logit_bias": ((3, 2.0),), "bad_words": ((5,),), "logprobs": 0},
]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_is_bitwise_the_same_alone_and_in_a_storm(num_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        vocab = 20_000
        x = logits_of(len(STORM) * 2, vocab, seed=9)
        options = STORM * 2
        together = sample(x, [sequence_of(**o) for o in options])
        for i, option in enumerate(options):
            alone = sample(x[i : i + 1], [sequence_of(**option)])
            assert alone.token_ids == [together.token_ids[i]]
            assert alone.logprobs.get(0) == together.logprobs.get(i)
        cut = truncated(x, top_p=0.9)
        for i in range(len(x)):
            assert torch.equal(truncated(x[i : i + 1], top_p=0.9)[0], cut[i])
            row = describe(x[i : i + 1], [17], [4])[0]
            assert row == describe(x, [17] * len(x), [4] * len(x))[i]
    finally:
        torch.set_num_threads(before)


def test_logprobs_of_named_tokens_come_in_the_place_of_the_best():
    x = logits_of(3)
    expected = torch.log_softmax(x.double(), dim=-1)
    rows = [
        sequence_of(logprobs=2, logprob_token_ids=(9, 4)),
        sequence_of(logprobs=1),
        sequence_of(logprobs=0, logprob_token_ids=(7,)),
    ]
    found = sample(x, rows).logprobs
    assert [token for token, _ in found[0].top] == [9, 4]
    assert [token for token, _ in found[1].top] == [int(expected[1].argmax())]
    for row, top in ((0, found[0].top), (2, found[2].top)):
        for token, logprob in top:
            assert logprob == pytest.approx(float(expected[row, token]), abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("option", STORM[:7])
def test_a_row_that_is_no_number_ends_alone(bad, option):
    x = logits_of(3)
    fine = sample(x[:1], [sequence_of(temperature=1.0)]).token_ids
    x[1, 123] = bad
    samples = sample(x, [sequence_of(temperature=1.0), sequence_of(**option), sequence_of()])
    assert set(samples.errors) == {1}
    assert samples.token_ids[0] == fine[0]
    assert samples.token_ids[2] == int(x[2].argmax())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_allowed_is_an_error_not_token_zero(temperature):
    contradiction = sequence_of(temperature=temperature, allowed_token_ids=(5,), bad_words=((5,),))
    samples = sample(logits_of(2), [contradiction, sequence_of()])
    assert set(samples.errors) == {0}
