"""Texts as models of each format write them, and how a client adds deltas up."""

from common.api.tools.deltas import CallDelta, ContentDelta
from common.api.tools.formats import BY_NAME

NAMES = frozenset({"get_weather", "f", "g", "now"})
PARIS = '{"city": "Paris"}'
NASTY = '{"a": [1, "}{\\"</x>[TOOL_CALLS]"], "b": null, "c": {"d": "é\\n;"}}'
DEEPSEEK_V3 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    f"```json\n{PARIS}\n```<｜tool▁call▁end｜>\n"
    f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{NASTY}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>"
)
DEEPSEEK_V31 = (
    f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜>"
    f"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{NASTY}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    f"<|tool_call_argument_begin|>{PARIS}<|tool_call_end|>"
    f"<|tool_call_begin|>functions.f:1<|tool_call_argument_begin|>{NASTY}<|tool_call_end|>"
    "<|tool_calls_section_end|>"
)
TWO_CALLS = [("get_weather", PARIS), ("f", NASTY)]

# format → (text with two calls, may text stand before it?)
TWO = {
    "hermes": (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "f", "arguments": {NASTY}}}\n</tool_call>',
        True,
    ),
    "llama3_json": (
        f'{{"name": "get_weather", "parameters": {PARIS}}}; '
        f'{{"type": "function", "name": "f", "parameters": {NASTY}}}',
        False,
    ),
    "mistral": (
        f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]f[CALL_ID]a1b[ARGS]{NASTY}",
        True,
    ),
    "mistral_list": (
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS}}}, '
        f'{{"name": "f", "arguments": {NASTY}}}]',
        True,
    ),
    "deepseek_v3": (DEEPSEEK_V3, True),
    "deepseek_v31": (DEEPSEEK_V31, True),
    "kimi_k2": (KIMI, True),
    "granite": (
        f'<|tool_call|>[{{"name": "get_weather", "arguments": {PARIS}}}, '
        f'{{"name": "f", "arguments": {NASTY}}}]',
        True,
    ),
}


def added_up(deltas):
    """(content, [(name, arguments)]); ids, types and names must come once, in order."""
    content = ""
    calls: list[list[str]] = []
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            content += delta.text
            continue
        assert isinstance(delta, CallDelta)
        if delta.name is not None:
            assert delta.index == len(calls) and delta.call_id
            calls.append([delta.name, ""])
        assert delta.index == len(calls) - 1
        calls[delta.index][1] += delta.arguments
    return content, [tuple(call) for call in calls]


def parse(pieces, format_name="hermes", max_calls=None):
    parser = BY_NAME[format_name].parser(NAMES, max_calls)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    content, calls = added_up(deltas)
    assert parser.num_calls == len(calls)
    return content, calls


def cut(text, borders):
    borders = sorted(border % (len(text) + 1) for border in borders)
    return [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
