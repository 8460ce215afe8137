"""Constrained sequences in the engine: what interrupts them must not change them."""

import time

import numpy as np
import pytest
import torch

from common.engine.constraint_compiler import Compilation, ConstraintCompiler
from common.engine.engine import MAX_HELD_S
from common.errors import BadRequest, Overloaded
from common.request import Constraint
from kernels.sampling import log_softmax
from tests.common.engine.constrained import (
    CLOSING,
    EOS,
    PROMPT,
    TEXT,
    VOCAB,
    ask,
    constrained_engine,
    run_all,
    running_compiler,
)
from tests.common.engine.standin_model import context_logits, must

NUMBERS = Constraint("regex", r"\d{3}( \d{3}){5,9}", "guided_regex")
OBJECT = Constraint("json_object", "")


@pytest.fixture(scope="module")
def compiler():
    with running_compiler() as made:
        run_all(constrained_engine(made), [ask("x", NUMBERS), ask("y", OBJECT, max_tokens=3)])
        yield made  # both are cached


def tokens_for(number):
    return TEXT.encode(number, add_special_tokens=False)


def events_of(engine):
    events = []
    while engine.has_work():
        result = engine.step()
        assert not result.failed
        events += result.events
    return events


class HandCompiler(ConstraintCompiler):
    """Outcomes come when the test says so."""

    def __init__(self, real):
        super().__init__(lambda: "", 0, ())
        self.real = real
        self.asked = []

    def submit(self, constraint):
        made = Compilation(constraint)
        self.asked.append(made)
        return made

    def finish(self):
        for made in self.asked:
            made.outcome = self.real.submit(made.constraint).outcome


# --- interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("constraint", [NUMBERS, OBJECT])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_resumed_request_goes_on_as_if_it_had_never_stopped(constraint, temperature, compiler):
    """Each cut: what another instance is given after a hand-over (1) or a death (any)."""

    def request(name, outputs=()):
        return ask(
            name,
            constraint,
            seed=5,
            max_tokens=40,
            temperature=temperature,
            outputs=outputs,
            logit_bias=CLOSING,
        )

    whole = run_all(constrained_engine(compiler), [request("whole")])
    expected = whole.tokens["whole"]
    assert len(expected) > 5
    engine = constrained_engine(compiler)
    cuts = range(1, len(expected))
    answers = run_all(engine, [request(str(cut), tuple(expected[:cut])) for cut in cuts])
    for cut in cuts:
        assert expected[:cut] + answers.tokens[str(cut)] == expected, cut
        assert answers.reason(str(cut)) == whole.reason("whole")


def test_the_prefill_side_samples_under_the_mask_and_the_decode_side_goes_on(compiler):
    whole = run_all(constrained_engine(compiler), [ask("a", NUMBERS, seed=3)]).tokens["a"]
    prefill, decode = constrained_engine(compiler), constrained_engine(compiler)
    prefill.add(ask("a", NUMBERS, seed=3), offer=True)
    offered = prefill.step()
    assert offered.events[0].token_ids == tuple(whole[:1])
    blocks = must(decode.reserve(len(offered.filled[0].block_ids)))
    source = list(offered.filled[0].block_ids)
    decode.cache.tensor[blocks] = prefill.cache.tensor[source]
    decode.adopt(ask("a", NUMBERS, seed=3, outputs=tuple(whole[:1])), blocks)
    prefill.free(source)
    tokens = [token for event in events_of(decode) for token in event.token_ids]
    assert whole[:1] + tokens == whole


def test_preempted_sequences_recompute_to_the_same_tokens(compiler):
    requests = [
        ask(str(n), NUMBERS if n % 2 else OBJECT, seed=n, max_tokens=60, logit_bias=CLOSING)
        for n in range(8)
    ]
    roomy = run_all(constrained_engine(compiler), requests)
    tight_engine = constrained_engine(compiler, num_blocks=8, max_num_seqs=8)
    tight = run_all(tight_engine, requests)
    assert tight_engine.ledger()["preemptions"] > 0
    assert tight.tokens == roomy.tokens


def test_a_crowd_changes_nothing(compiler):
    """Constrained or not, a row is what it is alone."""
    requests = [
        ask(
            str(n),
            [None, NUMBERS, OBJECT][n % 3],
            seed=n,
            max_tokens=25,
            temperature=n % 2 * 1.5,
            top_p=0.9 if n % 4 else 1.0,
            presence_penalty=0.5 if n % 5 == 0 else 0.0,
        )
        for n in range(24)
    ]
    crowd = run_all(constrained_engine(compiler), requests)
    for request in requests:
        alone = run_all(constrained_engine(compiler), [request])
        assert alone.tokens[request.request_id] == crowd.tokens[request.request_id]


# --- how outputs end ------------------------------------------------------------------------------


def test_a_complete_grammar_ends_the_answer_without_an_end_token(compiler):
    answers = run_all(
        constrained_engine(compiler), [ask("a", Constraint("choice", '["yes", "no"]'))]
    )
    last = answers.last["a"]
    assert answers.reason("a") == "stop"
    assert EOS not in answers.tokens["a"]
    assert last.stop_token_id is None and last.token_ids


def test_max_tokens_cuts_with_length(compiler):
    answers = run_all(constrained_engine(compiler), [ask("a", NUMBERS, max_tokens=7)])
    assert answers.reason("a") == "length" and len(answers.tokens["a"]) == 7


def test_completion_at_max_tokens_is_a_stop(compiler):
    constraint = Constraint("choice", '["yes"]')
    needed = len(run_all(constrained_engine(compiler), [ask("a", constraint)]).tokens["a"])
    answers = run_all(constrained_engine(compiler), [ask("a", constraint, max_tokens=needed)])
    assert answers.reason("a") == "stop"


def test_a_request_resumed_after_its_last_token_ends_at_once(compiler):
    constraint = Constraint("choice", '["yes"]')
    outputs = run_all(constrained_engine(compiler), [ask("a", constraint)]).tokens["a"]
    answers = run_all(constrained_engine(compiler), [ask("b", constraint, outputs=tuple(outputs))])
    assert answers.tokens["b"] == [] and answers.reason("b") == "stop"


def test_ignore_eos_leaves_the_end_token_out(compiler):
    constraint = Constraint("regex", "a+")
    requests = [
        ask(str(n), constraint, seed=n, max_tokens=20, ignore_eos=True, logit_bias=((EOS, 50.0),))
        for n in range(5)
    ]
    answers = run_all(constrained_engine(compiler), requests)
    for name, tokens in answers.tokens.items():
        assert answers.reason(name) == "length"
        assert EOS not in tokens


def test_min_tokens_keeps_the_end_token_away(compiler):
    constraint = Constraint("regex", "(ab?)+")
    requests = [
        ask(str(n), constraint, seed=n, max_tokens=60, min_tokens=15, logit_bias=((EOS, 50.0),))
        for n in range(5)
    ]
    answers = run_all(constrained_engine(compiler), requests)
    assert all(len(tokens) >= 15 for tokens in answers.tokens.values())
    assert all(answers.reason(name) == "stop" for name in answers.tokens)


def test_min_tokens_does_not_hold_up_what_is_complete(compiler):
    constraint = Constraint("choice", '["yes"]')
    answers = run_all(constrained_engine(compiler), [ask("a", constraint, min_tokens=50)])
    assert answers.text("a") == "yes" and answers.reason("a") == "stop"


def test_a_stop_token_ends_a_constrained_answer(compiler):
    (y,) = tokens_for("y")
    request = ask("a", Constraint("regex", "x{3}yz"), stop_token_ids=(y,))
    answers = run_all(constrained_engine(compiler), [request])
    assert answers.tokens["a"][-1] == y
    assert answers.last["a"].stop_token_id == y and answers.reason("a") == "stop"


@pytest.mark.parametrize(
    "limits",
    [
        {"allowed_token_ids": (5, 6)},
        {"bad_words": tuple((token,) for token in range(VOCAB) if token != EOS)},
        {"logit_bias": tuple((token, float("-inf")) for token in range(VOCAB))},
    ],
)
def test_a_mask_that_leaves_nothing_ends_the_request_and_nobody_else(limits, compiler):
    requests = [ask("none", NUMBERS, **limits), ask("other", NUMBERS, max_tokens=9)]
    answers = run_all(constrained_engine(compiler), requests)
    error = answers.failed["none"]
    assert isinstance(error, BadRequest) and error.param == "guided_regex"
    assert "allows no token" in error.message
    assert len(answers.tokens["other"]) == 9


def test_logprobs_are_those_of_the_raw_logits(compiler):
    answers = run_all(
        constrained_engine(compiler), [ask("a", NUMBERS, logprobs=3, temperature=0.0)]
    )
    tokens = answers.tokens["a"]
    for n, event in enumerate(answers.events["a"]):
        raw = torch.from_numpy(context_logits([*PROMPT, *tokens[:n]], VOCAB))[None]
        expected = log_softmax(raw)[0]
        (given,) = event.logprobs
        assert given.logprob == float(expected[tokens[n]])
        assert [token for token, _ in given.top] == expected.topk(3).indices.tolist()
    assert any(event.logprobs[0].rank > 3 for event in answers.events["a"])


def test_repetition_penalties_work_behind_the_mask(compiler):
    requests = [ask("a", NUMBERS, repetition_penalty=1.8, frequency_penalty=1.0)]
    answers = run_all(constrained_engine(compiler), requests)
    assert np.all([character in "0123456789 " for character in answers.text("a")])


# --- while a constraint is compiled ---------------------------------------------------------------


def test_others_go_on_while_a_constraint_is_compiled(compiler):
    hand = HandCompiler(compiler)
    engine = constrained_engine(hand)
    engine.add(ask("held", NUMBERS, max_tokens=5))
    engine.add(ask("free", None, max_tokens=5, temperature=0.0))
    events = [event for _ in range(6) for event in engine.step().events]
    assert {event.request_id for event in events} == {"free"} and events[-1].finish_reason
    assert engine.load().num_waiting == 1 and engine.has_work()
    assert engine.step().is_empty()
    hand.finish()
    assert engine.step().events[0].request_id == "held"


def test_an_abort_while_it_is_compiled(compiler):
    hand = HandCompiler(compiler)
    engine = constrained_engine(hand)
    blocks = must(engine.reserve(1))
    engine.add(ask("a", NUMBERS))
    engine.adopt(ask("b", NUMBERS, outputs=(7,)), blocks)
    engine.abort("a")
    engine.abort("b")
    assert not engine.has_work()
    assert engine.block_counts()["free"] == 512
    hand.finish()
    assert engine.step().is_empty()


def test_adopted_blocks_return_when_the_constraint_is_refused(compiler):
    hand = HandCompiler(compiler)
    engine = constrained_engine(hand)
    bad = Constraint("regex", "(", "guided_regex")
    compiler.submit(bad)
    engine.adopt(ask("a", bad, outputs=(7,)), must(engine.reserve(1)))
    assert not engine.step().failed
    deadline = time.monotonic() + 10
    while compiler.submit(bad).outcome is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    hand.finish()
    ((name, error),) = engine.step().failed
    assert name == "a" and isinstance(error, BadRequest) and error.param == "guided_regex"
    assert engine.block_counts()["free"] == 512


def test_nobody_is_held_for_ever(compiler):
    engine = constrained_engine(HandCompiler(compiler))
    now = 0.0
    engine._clock = lambda: now
    engine.add(ask("a", NUMBERS))
    assert not engine.step().failed
    now = MAX_HELD_S + 1
    ((_, error),) = engine.step().failed
    assert isinstance(error, Overloaded)


def test_without_a_compiler_constraints_are_refused():
    with pytest.raises(BadRequest, match="guided_regex"):
        constrained_engine(None).add(ask("a", NUMBERS))
