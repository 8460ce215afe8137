"""Every format: the calls are found, whatever the pieces; what is no call stays text."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.api.settings import api_settings
from common.api.tools.deltas import CallDelta, ContentDelta
from common.api.tools.formats import BY_NAME, FORMATS, detect
from common.config import ProxyConfig
from common.errors import ConfigError
from tests.common.api.tool_texts import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    KIMI,
    NAMES,
    PARIS,
    TWO,
    TWO_CALLS,
    cut,
    parse,
)

ALL = [each.name for each in FORMATS]
BROKEN = [
    *(
        "<tool_call>",
        '<tool_call>{"name": "f"',
        '<tool_call>{"name": 3}</tool_call>',
        "</tool_call>",
    ),
    *("<|python_tag|>", '<|python_tag|>print("x")', '{"name": "f", "parameters"', '{"name": "f"}x'),
    *(
        "[TOOL_CALLS]",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS][",
        '[TOOL_CALLS][{"name": "f", "arg',
        "[ARGS]",
    ),
    *(DEEPSEEK_V3[:40], DEEPSEEK_V3[:60], DEEPSEEK_V31[:50], "<｜tool▁calls▁end｜>", "<｜tool"),
    *(
        "<|python_start|>",
        "[f(",
        "[f(x=)]",
        "[f(x=1]",
        "[f(**x)]",
        "[f(x=open('y'))]",
        "[1, 2]",
        "[f]",
    ),
    *(
        "<|tool_call|>",
        '{"city": "Paris"}',
        '{"name": "Ann", "parameters": {}}',
        "[",
        "{",
        '"',
        "\\",
    ),
]
TEXTS = ["", " ", "\n\n", "Let me see.", "1 < 2", "日本語 👍🏽", "é\n", ", ", "; "]


@pytest.mark.parametrize("name", TWO)
def test_two_calls(name):
    text, may_follow_text = TWO[name]
    assert parse([text], name) == ("", TWO_CALLS)
    assert parse(text, name) == ("", TWO_CALLS)  # character by character
    if may_follow_text:
        assert parse([f"Let me see.\n\n{text}\nDone."], name) == ("Let me see.\n\nDone.", TWO_CALLS)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('[get_weather(city="Paris")]', "", [("get_weather", PARIS)]),
        ("[f(), now()]", "", [("f", "{}"), ("now", "{}")]),
        (
            "[f(a=1, b=[True, None, -2.5e3], c={'k': 'v\\'s'}, d=(1, 2))]",
            "",
            [("f", '{"a": 1, "b": [true, null, -2500.0], "c": {"k": "v\'s"}, "d": [1, 2]}')],
        ),
        ('[f(x=")]}\\"")]', "", [("f", '{"x": ")]}\\""}')]),
        ('[f(x="\\u00e9\\x41\\q\\\n")]', "", [("f", '{"x": "éA\\\\q"}')]),
        ('[f(x="\\ud83d\\ude00 \\ud83d")]', "", [("f", '{"x": "\\ud83d\\ude00 \\ud83d"}')]),
        ("<|python_start|>[f(x=1)]<|python_end|>", "", [("f", '{"x": 1}')]),
        ("Well: <|python_start|>[f(x=1)]<|python_end|> ok", "Well: ok", [("f", '{"x": 1}')]),
        ("[f(x=1), g(y=open('z'))] later", ", g(y=open('z'))] later", [("f", '{"x": 1}')]),
        ("[unknown(x=1)]", "[unknown(x=1)]", []),
        ("[f(1)]", "[f(1)]", []),
        ("[f(x=1e999)]", "[f(x=1e999)]", []),
        (f"[f(x={'[' * 200}{']' * 200})]", f"[f(x={'[' * 200}{']' * 200})]", []),
        (f"[f(x={'9' * 5000})]", f"[f(x={'9' * 5000})]", []),
    ],
)
def test_pythonic(text, content, calls):
    assert parse([text], "pythonic") == (content, calls)
    assert parse(text, "pythonic") == (content, calls)
    assert all(json.loads(arguments) is not None for _, arguments in calls)


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        ("llama3_json", '<|python_tag|>{"name": "x", "parameters": {}}', "", [("x", "{}")]),
        ("llama3_json", '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
        ("llama3_json", '{"name": "f", "size": 3}', '{"name": "f", "size": 3}', []),
        ("llama3_json", '{"parameters": {"x": 1}, "name": "f"} ', "", [("f", '{"x": 1}')]),
        ("llama3_json", '<|python_tag|>print("x")', '<|python_tag|>print("x")', []),
        ("llama3_json", '{"name": "f", "parameters": {}}; or', "; or", [("f", "{}")]),
        ("mistral", f"Hm [TOOL_CALLS]f{PARIS}", "Hm", [("f", PARIS)]),
        ("mistral", f'[TOOL_CALLS]{{"name": "f", "arguments": {PARIS}}}', "", [("f", PARIS)]),
        ("mistral", "[TOOL_CALLS] maybe", "[TOOL_CALLS] maybe", []),
        ("mistral_list", '[TOOL_CALLS][{"name": "f", "arguments": {}}, 5]', ", 5]", [("f", "{}")]),
        ("kimi_k2", KIMI[:60], KIMI[:60], []),
        ("kimi_k2", KIMI.replace("functions.", "").replace(":1", ""), "", TWO_CALLS),
        ("kimi_k2", KIMI.replace(KIMI[:28], ""), "", TWO_CALLS),
        ("deepseek_v31", DEEPSEEK_V3, "", TWO_CALLS),
        ("deepseek_v3", DEEPSEEK_V31, "", TWO_CALLS),
        ("deepseek_v3", DEEPSEEK_V31[:60], DEEPSEEK_V31[:60], []),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}</tool_call>.', ".", [("f", "{}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}} Bye', "Bye", [("f", "{}")]),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {}, "x": 1}</tool_call>',
            "",
            [("f", "{}")],
        ),
        ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
        ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}', None, []),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {\'a\'}}</tool_call>',
            "",
            [("f", "{'a'}}")],
        ),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
            "",
            [("f", '{"a": "</tool_call>"}')],
        ),
        (
            "hermes",
            f'<tool_call>{{"type": "function", "function": {{"name": "f", "arguments": {PARIS}}}}}',
            "",
            [("f", PARIS)],
        ),
        (
            "hermes",
            '<tool_call>{"function": {"name": "f", "arguments": {"x": 1e999}}}</tool_call>',
            None,
            [],
        ),
        (
            "hermes",
            f'<tool_call>no <tool_call>{{"name": "f", "arguments": {PARIS}}}</tool_call>',
            "<tool_call>no",
            [("f", PARIS)],
        ),
    ],
)
def test_odd_texts(name, text, content, calls):
    content = text if content is None else content
    assert parse([text], name) == (content, calls)
    assert parse(text, name) == (content, calls)


PARTS = st.sampled_from([text for text, _ in TWO.values()] + BROKEN + TEXTS + ["[f(x=[1, 'a'])]"])
MIXED = st.lists(PARTS | st.text(max_size=5), max_size=6).map("".join)
BORDERS = st.lists(st.integers(0, 2000), max_size=10)


@pytest.mark.parametrize("name", ALL)
@given(text=MIXED, borders=BORDERS, only_one=st.booleans())
@settings(max_examples=150)
def test_the_outcome_does_not_depend_on_the_pieces(name, text, borders, only_one):
    max_calls = 1 if only_one else None
    whole = parse([text], name, max_calls)
    assert parse(cut(text, borders), name, max_calls) == whole
    assert parse(text, name, max_calls) == whole


@pytest.mark.parametrize("name", ALL)
@given(text=st.lists(st.sampled_from(BROKEN + TEXTS), max_size=6).map("".join))
@settings(max_examples=100)
def test_without_a_call_nothing_is_lost(name, text):
    content, calls = parse([text], name)
    if not calls:
        assert content == text


@pytest.mark.parametrize("name", [name for name, (_, follows) in TWO.items() if follows])
@given(before=st.text(max_size=20), after=st.text(max_size=20))
@settings(max_examples=50)
def test_text_around_calls_is_kept(name, before, after):
    content, calls = parse([before + TWO[name][0] + after], name)
    shown = before.rstrip() if not after.strip() else before + after.lstrip()
    assert (content, calls) == (shown, TWO_CALLS)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=6), JSON, max_size=4)


@pytest.mark.parametrize("name", [name for name in TWO if name != "granite"])
@given(arguments=ARGUMENTS, borders=BORDERS, ascii_only=st.booleans())
@settings(max_examples=60)
def test_arguments_come_out_as_they_were_written(name, arguments, borders, ascii_only):
    shape = BY_NAME[name].shape
    written = json.dumps(arguments, ensure_ascii=ascii_only)
    text = f"{shape.head}{shape.before}f{shape.between}{written}{shape.after}{shape.tail}"
    assert parse(cut(text, borders), name) == ("", [("f", written)])


IDENTIFIERS = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)


@given(arguments=st.dictionaries(IDENTIFIERS, JSON, max_size=4))
@settings(max_examples=150)
def test_python_literals_mean_the_same_in_json(arguments):
    keywords = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    [(_, found)] = parse([f"[f({keywords})]"], "pythonic")[1]
    assert json.loads(found) == arguments


# --- held back no longer than needed --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "a <b"),
        ("hermes", "<tool_call>\n{no"),
        ("hermes", '<tool_call>{"name": 3'),
        ("llama3_json", '{"c'),
        ("llama3_json", '{"name": "A'),
        ("llama3_json", '{"name": "f", "s'),
        ("pythonic", "[1"),
        ("pythonic", "[get_time"),
        ("mistral", "[TOOLS"),
        ("deepseek_v3", "<｜tool▁sep"),
    ],
)
def test_what_cannot_become_a_call_is_shown_at_once(name, text):
    deltas = BY_NAME[name].parser(NAMES).push(text)
    assert "".join(each.text for each in deltas if isinstance(each, ContentDelta)) == text


@pytest.mark.parametrize("name", [*TWO])
def test_arguments_are_streamed_as_they_come(name):
    shape = BY_NAME[name].shape
    parser = BY_NAME[name].parser(NAMES)
    opening = parser.push(f'{shape.head}{shape.before}f{shape.between}{{"code": "')
    assert [delta.name for delta in opening if isinstance(delta, CallDelta)][0] == "f"
    assert parser.push("print(1)") == [CallDelta(0, "print(1)")]


def test_ids_are_new_and_mistrals_are_short():
    def ids(name):
        parser = BY_NAME[name].parser(NAMES)
        return [d.call_id for d in parser.push(TWO[name][0]) if isinstance(d, CallDelta) and d.name]

    assert len(set(ids("hermes") + ids("hermes"))) == 4
    assert all(each.startswith("call_") for each in ids("hermes"))
    assert all(len(each) == 9 and each.isalnum() for each in ids("mistral"))


def test_kimis_ids_are_its_own_and_differ():
    def ids(text):
        found = BY_NAME["kimi_k2"].parser(NAMES).push(text)
        return [delta.call_id for delta in found if isinstance(delta, CallDelta) and delta.name]

    assert ids(KIMI) == ["functions.get_weather:0", "functions.f:1"]
    same = KIMI.replace("f:1", "get_weather:0")
    assert ids(same) == ["functions.get_weather:0", "functions.get_weather:1"]


# --- which format ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "tokens", "expected"),
    [
        ('answer with <tool_call>\n{"name": <name>, "arguments": <args>}', (), "hermes"),
        ("{{ '<|python_tag|>' if builtin }}", (), "llama3_json"),
        (
            '{{ \'{"name": function name, "parameters": dictionary of argument name\' }}',
            (),
            "llama3_json",
        ),
        ("[func_name1(params_name1=params_value1)]", (), "pythonic"),
        ("{{ '[TOOL_CALLS]' }}{{ call.name }}{{ '[ARGS]' }}", (), "mistral"),
        ("{{ '[TOOL_CALLS] [' }}{% for c in calls %}", (), "mistral_list"),
        ("'<｜tool▁calls▁begin｜>' + name + '\\n' + '```json' + '\\n' + args", (), "deepseek_v3"),
        (
            "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>'",
            (),
            "deepseek_v31",
        ),
        ("{{ '<|tool_call|>' }}", (), "granite"),
        ("{{ '<|tool_calls_section_begin|><|tool_call_begin|>' + call.id }}", (), "kimi_k2"),
        ("{{ messages }}", ("[TOOL_CALLS]",), "mistral_list"),
        ("{{ messages }}", ("<|python_tag|>",), "llama3_json"),
        ("{{ messages }}", (), "hermes"),
    ],
)
def test_the_template_tells_the_format(template, tokens, expected):
    assert detect(template, tokens).name == expected


def test_the_bundled_model_is_read_as_hermes():
    template = Path(__file__).parents[3] / "models" / "xpyd-demo" / "chat_template.jinja"
    assert detect(template.read_text(), ()).name == "hermes"


def test_vllms_names_are_known():
    known = (
        "hermes llama3_json llama4_json llama4_pythonic pythonic mistral deepseek_v3 deepseek_v31"
    )
    assert set(known.split()) <= set(BY_NAME)


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (ProxyConfig(tool_call_parser="nope"), "--tool-call-parser"),
        (ProxyConfig(reasoning_parser="nope"), "--reasoning-parser"),
    ],
)
def test_an_unknown_name_on_the_command_line_is_a_clear_error(config, flag):
    with pytest.raises(ConfigError, match=f"{flag}: 'nope' is not known"):
        api_settings(config)


def test_long_arguments_cost_linear_time():
    call = f'<tool_call>{{"name": "f", "arguments": {{"text": "{"x" * 50_000}"}}}}</tool_call>'
    assert parse(call)[1][0][1] == json.dumps({"text": "x" * 50_000})
