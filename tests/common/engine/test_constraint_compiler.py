"""The process that tries constraints out, and the thread that asks it."""

import asyncio
import json
import threading
import time

import psutil
import pytest

from common.engine.constraint_compiler import ConstraintCompiler
from common.engine.driver import EngineDriver
from common.engine.engine import StepResult
from common.errors import BadRequest
from common.grammar.matcher import CompiledGrammar
from common.request import Constraint
from tests.common.engine.constrained import EOS, VOCAB, ask, constrained_engine, running_compiler
from tests.common.made_tokenizers import byte_level, word_suffix

FINE = Constraint("regex", "[a-z]+")
EXPLOSIVE = {
    "properties": Constraint(
        "json_schema",
        json.dumps({"properties": {f"property {i}": {"type": "string"} for i in range(7000)}}),
        "guided_json",
    ),
    "product": Constraint(
        "json_schema",
        json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"p{i}{j}": {"maxLength": j}}} for j in range(20)]}
                    for i in range(20)
                ]
            }
        ),
        "guided_json",
    ),
    "anchors": Constraint("regex", r"(\b\w?){60}" * 20, "guided_regex"),
    "parentheses": Constraint("regex", "(" * 4000 + ")" * 4000, "guided_regex"),
    "deep grammar": Constraint("grammar", "start: " + "(" * 20000 + '"a"' + ")" * 20000, "x"),
    "no end": Constraint("grammar", "start: start", "guided_grammar"),
}


def outcome_of(compiler, constraint, deadline_s=60.0):
    made = compiler.submit(constraint)
    deadline = time.monotonic() + deadline_s
    while made.outcome is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return made.outcome


@pytest.fixture(scope="module")
def compiler():
    with running_compiler() as made:
        assert isinstance(outcome_of(made, FINE), CompiledGrammar)
        yield made


def children():
    return [child.pid for child in psutil.Process().children() if child.is_running()]


def test_nothing_is_started_before_the_first_constraint_and_nothing_stays():
    before, threads = children(), threading.active_count()
    loaded = []

    def tokenizer():
        loaded.append(1)
        return byte_level().to_str()

    compiler = ConstraintCompiler(tokenizer, VOCAB, (EOS,))
    assert not loaded and children() == before and threading.active_count() == threads
    outcome_of(compiler, FINE)
    assert len(children()) == len(before) + 1
    compiler.close()
    compiler.close()
    assert children() == before and threading.active_count() == threads


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("grammar", 'root ::= "a"{1000000000}', "guided_grammar"),
        Constraint("regex", "(a?){900}a{900}", "guided_regex"),
    ],
)
def test_what_only_looks_explosive_is_compiled(constraint, compiler):
    assert isinstance(outcome_of(compiler, constraint), CompiledGrammar)


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_an_explosive_constraint_is_refused(name, compiler):
    outcome_of(compiler, FINE)  # the process runs, and is restarted below if it had to be killed
    outcome = outcome_of(compiler, EXPLOSIVE[name])
    assert isinstance(outcome, BadRequest)
    assert outcome.param == EXPLOSIVE[name].field
    assert outcome.message.startswith(f"{outcome.param}: ") and "\n" not in outcome.message
    assert isinstance(outcome_of(compiler, Constraint("regex", f"{name}+")), CompiledGrammar)


def test_the_process_may_die(compiler):
    outcome_of(compiler, FINE)
    for pid in children():
        psutil.Process(pid).kill()
    assert isinstance(outcome_of(compiler, Constraint("regex", "lost?")), BadRequest)
    assert isinstance(outcome_of(compiler, Constraint("regex", "again?")), CompiledGrammar)
    assert isinstance(outcome_of(compiler, Constraint("regex", "lost?")), CompiledGrammar)


def test_outcomes_are_kept_within_a_bound_of_bytes():
    with running_compiler(cache_bytes=400_000) as compiler:
        first = Constraint("regex", "first+")
        kept = outcome_of(compiler, first)
        assert outcome_of(compiler, first) is kept
        for n in range(10):
            outcome_of(compiler, Constraint("regex", f"other{n}"))
            assert compiler.cached_bytes() <= 400_000
        assert outcome_of(compiler, first) is not kept
        refused = Constraint("regex", "(")
        assert outcome_of(compiler, refused) is outcome_of(compiler, refused)


def test_a_tokenizer_that_cannot_be_constrained():
    compiler = ConstraintCompiler(word_suffix().to_str, 400, (0,))
    outcome = outcome_of(compiler, FINE)
    compiler.close()
    assert isinstance(outcome, BadRequest) and "tokenizer" in outcome.message


def test_an_idle_engine_wakes_up_when_a_constraint_is_compiled(compiler, monkeypatch):
    monkeypatch.setattr("common.engine.driver.IDLE_WAKE_UP_S", 60.0)

    async def body():
        done = asyncio.Event()
        results: list[StepResult] = []

        def listen(result):
            results.append(result)
            if result.events and result.events[-1].finish_reason:
                done.set()

        driver = EngineDriver(constrained_engine(compiler))
        driver.listeners.append(listen)
        driver.start(asyncio.get_running_loop())
        constraint = Constraint("choice", '["quick", "slow"]')
        await driver.call(lambda engine: engine.add(ask("a", constraint)))
        await asyncio.wait_for(done.wait(), 10)
        compiler.on_outcome = lambda: None
        driver._engine._constraints._compiler = None  # the module's, not the driver's to close
        await driver.stop()
        assert results

    asyncio.run(body())


def test_a_refusal_known_already_is_raised_at_once(compiler):
    bad = Constraint("regex", "[", "guided_regex")
    outcome_of(compiler, bad)
    with pytest.raises(BadRequest, match="guided_regex"):
        constrained_engine(compiler).add(ask("a", bad))
