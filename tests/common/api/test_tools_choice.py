"""tool_choice and strict schemas as constraints; llguidance says what they let through."""

import json

import pytest
from llguidance import LLMatcher

from common.api.dialect import Dialect
from common.api.enforce import enforced
from common.api.reasoning.formats import BY_NAME as REASONING
from common.api.tools.choice import call_rules
from common.api.tools.formats import BY_NAME, FORMATS
from common.errors import BadRequest
from common.grammar.checker import special_ids
from common.grammar.matcher import load_tokens
from common.grammar.translate import grammar_of
from common.request import Constraint
from tests.common.api.tool_texts import added_up
from tests.common.made_tokenizers import byte_level

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
NAMED_F = {"type": "function", "function": {"name": "f"}}


def tool(name, parameters=None, **extra):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **extra}}


TOOLS = [tool("get_weather", CITY), tool("f")]
PARIS = '{"city": "Paris"}'


@pytest.fixture(scope="module")
def tokens():
    made = byte_level()  # where <tool_call> is one token
    loaded = load_tokens(made.to_str(), made.get_vocab_size(), (2,))
    return loaded, special_ids(loaded, made.to_str())


@pytest.fixture
def allows(tokens):
    """Does a constraint let this whole text through?"""

    def ask(constraint, text):
        matcher = LLMatcher(tokens[0], grammar_of(constraint.kind, constraint.text, tokens[1]))
        assert not matcher.get_error(), matcher.get_error()
        ids = byte_level().encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return ask


def dialect(calls="hermes", reasoning=None):
    thoughts = REASONING[reasoning] if reasoning else None
    return Dialect(BY_NAME[calls], thoughts, frozenset(), "", marks_are_tokens=True)


def spelled(format_name, *calls):
    shape = BY_NAME[format_name].shape
    each = [f"{shape.before}{name}{shape.between}{args}{shape.after}" for name, args in calls]
    return shape.head + shape.separator.join(each) + shape.tail


def demand(choice, tools=TOOLS, *, parallel=True, calls="hermes", **options):
    rules = call_rules(tools, choice, parallel=parallel)
    made = enforced(
        rules, dialect(calls, options.pop("reasoning", None)), **{"prompt_end": "", **options}
    )
    return made


@pytest.mark.parametrize("name", [each.name for each in FORMATS])
def test_required_calls_are_spelled_as_the_format_reads_them(name, allows):
    made = demand("required", calls=name)
    one = spelled(name, ("get_weather", PARIS))
    two = spelled(name, ("get_weather", PARIS), ("f", '{"x": 1}'))
    assert allows(made, one)
    assert allows(made, two)
    assert not allows(made, "It is sunny.")
    assert not allows(made, spelled(name, ("get_weather", '{"town": 1}')))
    assert not allows(made, spelled(name, ("nothing", "{}")))
    parser = (BY_NAME["llama3_json"] if name == "pythonic" else BY_NAME[name]).parser(
        frozenset({"get_weather", "f"})
    )
    assert added_up(parser.push(two) + parser.finish()) == (
        "",
        [("get_weather", PARIS), ("f", '{"x": 1}')],
    )


def test_one_call_at_most(allows):
    for made in (demand("required", parallel=False), demand(NAMED_F)):
        assert allows(made, spelled("hermes", ("f", "{}")))
        assert not allows(made, spelled("hermes", ("f", "{}"), ("f", "{}")))


def test_a_named_function_is_the_only_one(allows):
    assert not allows(demand(NAMED_F), spelled("hermes", ("get_weather", PARIS)))


@pytest.mark.parametrize(
    "name", ["hermes", "mistral", "mistral_list", "deepseek_v3", "deepseek_v31"]
)
def test_strict_tools_are_held_to_their_schema_wherever_they_are_called(name, allows):
    made = demand(None, [tool("get_weather", CITY, strict=True), tool("f")], calls=name)
    assert allows(made, "It is sunny.")
    assert allows(made, "Well.\n" + spelled(name, ("get_weather", PARIS)))
    assert allows(made, "Well.\n" + spelled(name, ("f", '{"any": [1]}')))
    assert not allows(made, spelled(name, ("get_weather", '{"town": 1}')))
    assert not allows(made, "Well.\n" + spelled(name, ("get_weather", '{"town": 1}')))


def test_without_a_demand_the_model_is_free():
    assert demand(None) is None
    assert demand("auto") is None
    assert demand("none", [tool("f", CITY, strict=True)]) is None
    assert demand(None, None) is None


def test_allowed_tools(allows):
    def choice(mode):
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NAMED_F]}}

    required, auto = demand(choice("required")), demand(choice("auto"))
    for made in (required, auto):
        assert allows(made, spelled("hermes", ("f", "{}")))
        assert not allows(made, spelled("hermes", ("get_weather", PARIS)))
    assert allows(auto, "No.")
    assert not allows(required, "No.")


def test_unknown_names_are_refused():
    with pytest.raises(BadRequest, match="no tool 'nope'") as caught:
        demand({"type": "function", "function": {"name": "nope"}})
    assert caught.value.param == "tool_choice"


def test_reasoning_stays_free(allows):
    call = spelled("hermes", ("f", "{}"))
    opened = demand(NAMED_F, reasoning="qwen3", prompt_end="assistant\n<think>\n")
    assert allows(opened, f"Hm, <f> or not?\n</think>\n\n{call}")
    assert not allows(opened, call)
    assert not allows(opened, "Hm.\n</think>\n\nNo.")
    maybe = demand(NAMED_F, reasoning="qwen3", prompt_end="assistant\n")
    assert allows(maybe, f"<think>\nHm.\n</think>\n\n{call}")
    assert allows(maybe, call)
    never = demand(NAMED_F, reasoning="qwen3", prompt_end="<think>\n\n</think>\n\n")
    assert allows(never, call)
    assert not allows(never, f"<think>\nHm.\n</think>\n\n{call}")


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        ("json_schema", json.dumps(CITY), PARIS, '{"town": 1}'),
        ("json_object", "", '{"a": 1}', "[1]"),
        ("regex", "[0-9]+", "42", "x"),
        ("choice", '["yes", "no"]', "yes", "maybe"),
        ("grammar", 'start: "ab" | "cd"', "cd", "ad"),
        ("structural_tag", '{"format": {"type": "const_string", "value": "ok"}}', "ok", "no"),
    ],
)
def test_content_may_be_constrained_beside_calls_and_behind_reasoning(
    kind, text, right, wrong, allows
):
    content = Constraint(kind, text)
    assert demand("none", content=content) == content
    assert demand(None, None, content=content) == content
    call = spelled("hermes", ("f", "{}"))
    beside = demand("auto", content=content)
    behind = demand(None, None, content=content, reasoning="qwen3", prompt_end="<think>")
    assert allows(beside, right) and allows(beside, call) and not allows(beside, wrong)
    assert allows(behind, f"Hm</think>\n{right}") and not allows(behind, f"Hm</think>\n{wrong}")


def test_the_old_form_of_structural_tags_is_understood(allows):
    tag = {
        "structures": [{"begin": "<n>", "schema": {"type": "integer"}, "end": "</n>"}],
        "triggers": ["<n>"],
    }
    made = demand(
        None,
        None,
        content=Constraint("structural_tag", json.dumps(tag)),
        reasoning="qwen3",
        prompt_end="<think>",
    )
    assert allows(made, "Hm</think> It is <n>5</n>.")
    assert not allows(made, "Hm</think> It is <n>x</n>.")
