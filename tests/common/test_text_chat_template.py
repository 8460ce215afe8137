"""Chat templates: rendered as transformers renders them, and kept within bounds."""

import time

import pytest

from common.chat_template import ChatTemplate, TemplateRefused
from common.errors import BadRequest
from tests.common.made_tokenizers import oracle

HERMES = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{ tool | tojson }}
{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(count=0) %}
{%- for message in messages %}
    {%- set ns.count = ns.count + 1 %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>' + call.function.name + (call.function.arguments | tojson) }}
        {%- endfor %}
    {%- endif %}
    {{- bos_token + '<|im_start|>' + message['role'] + '\\n' + message.content | trim }}
    {%- if loop.last and loop.index0 == messages | length - 1 %}{{ '!' ~ loop.index }}{% endif %}
    {{- '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- generation %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' + ns.count | string + (thinking or 'x') }}
{%- endif %}
{%- endgeneration %}
"""
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é> & 'q'"}}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Zürich"}}}
CHAT = [
    {"role": "system", "content": "  Be <b>brief</b>. "},
    {"role": "user", "content": "Hi & bye"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "user", "content": "ünï"},
]


def render(source, messages=CHAT, **options):
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **options)


def as_transformers(source, messages=CHAT, **options):
    tokenizer = oracle("byte_level")
    return tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, bos_token="<s>", **options
    )


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("thinking", [None, "deep"])
def test_renders_as_transformers_does(tools, prompt, thinking):
    ours = render(
        HERMES, tools=tools, add_generation_prompt=prompt, variables={"thinking": thinking}
    )
    assert ours == as_transformers(
        HERMES, tools=tools, add_generation_prompt=prompt, thinking=thinking
    )


@pytest.mark.parametrize("ending", ["So the answer", "So the answer  ", "Ends\n"])
def test_the_final_message_is_continued(ending):
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = [{"role": "user", "content": "So the answer"}, {"role": "assistant", "content": ending}]
    ours = render(source, chat, add_generation_prompt=False, continue_final_message=True)
    assert ours == as_transformers(source, chat, continue_final_message=True)
    assert ours.endswith(ending)


def test_a_template_may_refuse_a_conversation():
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadRequest, match="roles must alternate") as caught:
        render(source)
    assert caught.value.param == "messages"


def test_usual_text_methods_work():
    source = (
        "{{ ' a-b '.strip().replace('-', '+').split('+') | join('|') }}"
        "{{ 'x'.join(['1', '2']) }}{{ [{'n': 1}, {'n': 2}] | join(',', attribute='n') }}"
        "{{ 'aaa' | replace('a', 'b', 2) }}{{ 'ab' * 2 }}{{ 2 * 3 + 2 ** 3 + 7 % 4 }}"
        "{{ '{:>4}|{}'.format(7, 'x') }}{{ '%02d' % 3 }}{{ 'é\n'.encode().decode() }}"
        "{{ '%s!' | format(1) }}{{ 'a\nb' | indent(2, first=true) }}{{ 'x' | center(3) }}"
        "{{ [1] + [2] }}{{ 'a' ~ 1 }}{% for i in [3, 1] recursive %}{{ i }}{{ loop.length }}"
        "{% endfor %}{{ messages[1:] | map(attribute='role') | list | tojson }}"
    )
    assert render(source) == as_transformers(source)


def test_strftime_now():
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")


def test_reserved_variables_cannot_be_set():
    with pytest.raises(BadRequest, match="messages"):
        render(HERMES, variables={"messages": []})


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'unclosed }}", "{% if x %}"])
def test_what_does_not_compile_is_refused(source):
    with pytest.raises(TemplateRefused, match="compile"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ ''.join(['a', 'b']).format.__self__ }}{{ 'a'.__len__() }}",
    ],
)
def test_the_sandbox_holds(source):
    with pytest.raises(BadRequest):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in 'x' * 99999 %}{% for b in 'x' * 99999 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% for i in range(9) %}{{ f(n) }}{% endfor %}{% endmacro %}{{ f(1) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
        "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
        "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
        "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=99999) %}{% for i in range(60) %}"
        "{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 99999 ** 99999 }}",
        "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{{ 'x' | center(1000000000) }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ range(1000000000) | list }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [[]] * 2 recursive %}{{ loop([1, 2]) }}{{ loop([1, 2]) }}{% endfor %}",
        "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999).join(['y'] * 99999) }}",
        "{{ ['y'] * 99999 | join('x' * 99999) }}",
        "{{ (['y'] * 99999) | join('x' * 99999) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '%01000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%01000000000d' | format(1) }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        "{{ ('a\n' * 99999) | indent('x' * 99999) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
    ],
)
def test_a_runaway_template_is_stopped(source):
    started = time.monotonic()
    with pytest.raises((BadRequest, TemplateRefused)):
        render(source, deadline_s=0.2)
    assert time.monotonic() - started < 7


def test_a_looping_template_is_refused_at_once():
    source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateRefused, match="too long"):
        ChatTemplate(source).probe(deadline_s=0.2)


def test_a_template_that_wants_other_roles_is_not_refused():
    ChatTemplate("{{ raise_exception('needs a system message') }}").probe()
