"""Each field of a request: what reaches the engine, what comes back, what is refused."""

import pytest

from common.api.sampling import choice_seed
from common.api.scripted import Script, ScriptedEngine, token_logprob
from tests.common.api.apps import (
    MODEL,
    USER,
    InProcess,
    create_app,
    error_of,
    events,
    says,
    text_model,
    tokens,
)

APP = InProcess(says("Hello world"))


def sampling(path="/v1/completions", **body):
    """What the engine is told for a body."""
    engine = says("Hello")
    base = {"prompt": "Hi"} if path == "/v1/completions" else {"messages": USER}
    response = InProcess(engine).post(path, {**base, **body})
    assert response.status_code == 200, response.text
    return engine.requests[0].sampling


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({}, "max_tokens", 16),
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"temperature": 0}, "temperature", 0.0),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 7}, "top_k", 7),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"seed": -(1 << 63)}, "seed", -(1 << 63)),
        ({"repetition_penalty": 1.2}, "repetition_penalty", 1.2),
        ({"presence_penalty": -2}, "presence_penalty", -2.0),
        ({"frequency_penalty": 2.0}, "frequency_penalty", 2.0),
        ({"min_tokens": 3}, "min_tokens", 3),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"stop_token_ids": [5, 3, 5]}, "stop_token_ids", (5, 3)),
        ({"logit_bias": {"7": -100, "2": 1}}, "logit_bias", ((2, 1.0), (7, -100.0))),
        ({"allowed_token_ids": [9, 4, 9]}, "allowed_token_ids", (4, 9)),
        ({"logprobs": 3}, "logprobs", 3),
        ({"logprobs": 0}, "logprobs", 0),
        ({"prompt_logprobs": 2}, "prompt_logprobs", 2),
        ({"echo": True, "logprobs": 1}, "prompt_logprobs", 1),
        ({"echo": True, "max_tokens": 0}, "max_tokens", 1),
        ({"temperature": None, "stop": None, "n": None, "logit_bias": None}, "temperature", 1.0),
    ],
)
def test_fields_reach_the_engine(body, field, value):
    assert getattr(sampling(**body), field) == value


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, 6),
        ({}, 2048 - len(tokens("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"))),
    ],
)
def test_how_long_a_chat_answer_may_be(body, value):
    assert sampling("/v1/chat/completions", **body).max_tokens == value


def test_chat_logprobs_reach_the_engine():
    assert sampling("/v1/chat/completions", logprobs=True).logprobs == 0
    assert sampling("/v1/chat/completions", logprobs=True, top_logprobs=4).logprobs == 4
    assert sampling("/v1/chat/completions").logprobs is None


def test_bad_words_are_spelled_with_and_without_a_space():
    found = sampling(bad_words=["world"]).bad_words
    assert {text_model().decode(ids) for ids in found} == {"world", " world"}


def test_seeds():
    """Unseeded requests differ; choices differ; each can be had again."""
    drawn = {sampling().seed for _ in range(3)}
    assert len(drawn) == 3
    engine = says("x")
    InProcess(engine).complete(prompt=["a", "b"], n=2, seed=7)
    seeds = {r.request_id.rpartition("-")[2]: r.sampling.seed for r in engine.requests}
    assert seeds == {"0": 7, "1": choice_seed(7, 1), "2": 7, "3": choice_seed(7, 1)}


def test_greedy_choices_may_be_several():
    body = APP.chat(n=3, temperature=0).json()
    assert [c["message"]["content"] for c in body["choices"]] == ["Hello world"] * 3


def test_priority_and_salt_reach_the_engine():
    engine = says("x")
    InProcess(engine).complete(priority=-3, cache_salt="abc")
    assert (engine.requests[0].priority, engine.requests[0].cache_salt) == (-3, "abc")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat", {"temperature": 2.1}, "temperature"),
        ("chat", {"temperature": -0.1}, "temperature"),
        ("chat", {"temperature": "0.5"}, "temperature"),
        ("chat", {"temperature": True}, "temperature"),
        ("chat", {"top_p": 0}, "top_p"),
        ("chat", {"n": 0}, "n"),
        ("chat", {"n": 129}, "n"),
        ("chat", {"n": 1.0}, "n"),
        ("chat", {"n": True}, "n"),
        ("chat", {"seed": 1 << 63}, "seed"),
        ("chat", {"seed": 10**40}, "seed"),
        ("chat", {"max_tokens": 0}, "max_tokens"),
        ("chat", {"max_tokens": 1 << 40}, "max_tokens"),
        ("chat", {"stop": [""]}, "stop"),
        ("chat", {"stop": ["a"] * 5}, "stop"),
        ("chat", {"stop": 3}, "stop"),
        ("chat", {"top_k": -2}, "top_k"),
        ("chat", {"min_p": 1.5}, "min_p"),
        ("chat", {"repetition_penalty": 0}, "repetition_penalty"),
        ("chat", {"presence_penalty": 3}, "presence_penalty"),
        ("chat", {"logit_bias": {"a": 1}}, "logit_bias"),
        ("chat", {"logit_bias": {"1": 101}}, "logit_bias[1]"),
        ("chat", {"logit_bias": {"999999": 1}}, "logit_bias"),
        ("chat", {"stop_token_ids": [99999]}, "stop_token_ids"),
        ("chat", {"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ("chat", {"allowed_token_ids": []}, "allowed_token_ids"),
        ("chat", {"min_tokens": 20, "max_tokens": 10}, "min_tokens"),
        ("chat", {"top_logprobs": 2}, None),
        ("chat", {"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ("chat", {"logprobs": 2}, "logprobs"),
        ("chat", {"stream": "yes"}, "stream"),
        ("chat", {"stream_options": {"include_usage": True}}, None),
        ("chat", {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ("chat", {"cache_salt": "a/b"}, "cache_salt"),
        ("chat", {"cache_salt": "a" * 129}, "cache_salt"),
        ("chat", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": None}, "messages"),
        ("chat", {"messages": "Hi"}, "messages"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user"}]}, "messages[0]"),
        ("chat", {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
        ),
        ("chat", {"tools": []}, "tools"),
        ("chat", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
        ("chat", {"tool_choice": "auto"}, "tool_choice"),
        ("chat", {"tool_choice": "required"}, "tool_choice"),
        ("chat", {"tool_choice": {"type": "function"}}, "tool_choice"),
        ("chat", {"chat_template": "{{ 1 }}"}, "chat_template"),
        ("chat", {"continue_final_message": True}, None),
        ("chat", {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ("chat", {"response_format": {"type": "yaml"}}, "response_format.type"),
        ("chat", {"modalities": ["text", "audio"]}, "modalities"),
        ("chat", {"web_search_options": {}}, "web_search_options"),
        ("chat", {"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ("chat", {"functions": [{"name": "f"}], "tools": []}, "functions"),
        ("chat", {"use_beam_search": True}, "use_beam_search"),
        ("chat", {"kv_transfer_params": {}}, "kv_transfer_params"),
        ("chat", {"bootstrap_room": 1}, "bootstrap_room"),
        ("text", {"prompt": None}, "prompt"),
        ("text", {"prompt": []}, "prompt"),
        ("text", {"prompt": [[]]}, "prompt"),
        ("text", {"prompt": ["a", 1]}, "prompt"),
        ("text", {"prompt": [1.5]}, "prompt"),
        ("text", {"prompt": [True]}, "prompt"),
        ("text", {"prompt": [-1]}, "prompt"),
        ("text", {"prompt": [99999]}, "prompt"),
        ("text", {"prompt": ""}, "prompt"),
        ("text", {"prompt": {"text": "x"}}, "prompt"),
        ("text", {"prompt": ["a"] * 1025}, "prompt"),
        ("text", {"prompt": ["a"] * 9, "n": 128}, "n"),
        ("text", {"max_tokens": 0}, "max_tokens"),
        ("text", {"suffix": "x"}, "suffix"),
        ("text", {"logprobs": 21}, "logprobs"),
        ("text", {"logprobs": True}, "logprobs"),
        ("text", {"best_of": 2, "n": 3}, "best_of"),
        ("text", {"best_of": 2, "stream": True}, "best_of"),
        ("text", {"prompt_embeds": "abc"}, "prompt_embeds"),
    ],
)
def test_what_is_refused_and_the_field_that_is_named(path, body, param):
    response = APP.chat(**body) if path == "chat" else APP.complete(**body)
    error = error_of(response, 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "tool_choice": None},
        {"use_beam_search": False, "guided_json": None, "length_penalty": 1.0},
        {"reasoning_effort": "low", "verbosity": "low", "prompt_cache_key": "k"},
        {"something_unknown": {"deep": [1]}},
        {"stream": False, "stream_options": None},
    ],
)
def test_what_is_accepted_without_effect(body):
    assert APP.chat(**body).json()["choices"][0]["message"]["content"] == "Hello world"


# --- prompts -------------------------------------------------------------------------------------


def prompt_of(**body):
    engine = says("x")
    response = InProcess(engine).chat(**body)
    assert response.status_code == 200, response.text
    return text_model().decode(engine.requests[0].prompt_token_ids)


def test_a_conversation_becomes_a_prompt():
    messages = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"x": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    assert prompt_of(messages=messages) == (
        "<|im_start|>system\nBe brief<|im_end|>\n"
        "<|im_start|>user\na\nb<|im_end|>\n"
        '<|im_start|>assistant\n{"name": "f", "arguments": {"x": 1}}<|im_end|>\n'
        "<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_final_message_is_continued():
    messages = [*USER, {"role": "assistant", "content": "Sure, "}]
    prompt = prompt_of(messages=messages, add_generation_prompt=False, continue_final_message=True)
    assert prompt.endswith("<|im_start|>assistant\nSure, ")


def test_tools_are_in_the_prompt_and_may_be_left_unread():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert prompt_of(tools=tools).startswith("[tools]")
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    choice = InProcess(says(call)).chat(tools=tools, tool_choice="none").json()["choices"][0]
    assert choice["message"]["content"] == call
    assert choice["finish_reason"] == "stop"


def test_templates_of_clients_need_leave():
    engine = says("x")
    app = InProcess(engine, allow_chat_template=True)
    template = "{{ messages[0].content }}{{ mood }}{{ eos_token }}"
    app.chat(chat_template=template, chat_template_kwargs={"mood": "!"})
    assert text_model().decode(engine.requests[0].prompt_token_ids) == "Hi!<|im_end|>"
    error_of(app.chat(chat_template="{% for %}"), 400)
    assert error_of(app.chat(chat_template="{{ 'x' * 10**9 }}"), 400)["param"] == "messages"


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"truncate_prompt_tokens": 2}, [4, 5]),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, [1, 2]),
        ({"truncate_prompt_tokens": 9}, [1, 2, 3, 4, 5]),
    ],
)
def test_prompts_are_truncated_on_demand(body, kept):
    engine = says("x")
    InProcess(engine).complete(prompt=[1, 2, 3, 4, 5], **body)
    assert list(engine.requests[0].prompt_token_ids) == kept


def test_truncation_to_what_fits():
    engine = ScriptedEngine(Script(tokens("x")), model=MODEL, max_model_len=4)
    assert InProcess(engine).complete(prompt=[1] * 9, truncate_prompt_tokens=-1).is_success
    assert len(engine.requests[0].prompt_token_ids) == 3


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "fits"),
    [(10, 6, True), (10, 7, False), (15, None, True), (16, None, False), (17, None, False)],
)
def test_the_context_length(prompt_len, max_tokens, fits):
    engine = ScriptedEngine(Script(tokens("x")), model=MODEL, max_model_len=16)
    response = InProcess(engine).complete(prompt=[1] * prompt_len, max_tokens=max_tokens)
    if fits:
        assert engine.requests[0].sampling.max_tokens == (max_tokens or 16 - prompt_len)
    else:
        error = error_of(response, 400)
        assert error["code"] == "context_length_exceeded"
        assert "maximum context length" in error["message"]


def test_long_prompts_are_encoded_in_a_thread():
    text = "Hello world " * 4000
    app = InProcess(ScriptedEngine(Script(tokens("x")), model=MODEL, max_model_len=1 << 20))
    count = app.post("/tokenize", {"prompt": text}).json()["count"]
    assert app.complete(prompt=text).json()["usage"]["prompt_tokens"] == count


# --- answers -------------------------------------------------------------------------------------


def test_echo():
    for prompt in ("you é", tokens("you é")):
        body = APP.complete(echo=True, prompt=prompt).json()
        assert body["choices"][0]["text"] == "you éHello world"


def test_echo_alone():
    engine = says("Hello")
    body = InProcess(engine).complete(echo=True, max_tokens=0, logprobs=1, prompt="Hi").json()
    choice = body["choices"][0]
    assert choice["text"] == "Hi"
    assert "".join(choice["logprobs"]["tokens"]) == "Hi"
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 0


def test_echoed_logprobs():
    choice = APP.complete(echo=True, logprobs=2, prompt="Hi you").json()["choices"][0]
    found = choice["logprobs"]
    ids = [*tokens("Hi you"), *tokens("Hello world")]
    assert "".join(found["tokens"]) == "Hi youHello world"
    assert found["token_logprobs"] == [None, *(token_logprob(i, 0).logprob for i in ids[1:])]
    assert found["top_logprobs"][0] is None
    for offset, token in zip(found["text_offset"], found["tokens"], strict=True):
        assert choice["text"][offset:].startswith(token)


def test_completion_logprobs_of_broken_characters_keep_apart():
    choice = InProcess(says("👍")).complete(logprobs=0).json()["choices"][0]
    assert choice["logprobs"]["tokens"][0].startswith("bytes:\\xf0")
    assert choice["logprobs"]["text_offset"] == [0] * len(tokens("👍"))
    assert choice["logprobs"]["top_logprobs"] is None


def test_tokens_as_ids():
    content = APP.chat(logprobs=True, return_tokens_as_token_ids=True).json()["choices"][0][
        "logprobs"
    ]["content"]
    assert [entry["token"] for entry in content] == [f"token_id:{i}" for i in tokens("Hello world")]
    choice = APP.complete(logprobs=1, return_tokens_as_token_ids=True).json()["choices"][0]
    assert choice["logprobs"]["tokens"][0] == f"token_id:{tokens('Hello world')[0]}"


def test_token_ids_come_back_on_demand():
    body = APP.chat(return_token_ids=True).json()
    assert tuple(body["choices"][0]["token_ids"]) == tokens("Hello world")
    assert body["prompt_token_ids"]
    choice = APP.complete(return_token_ids=True).json()["choices"][0]
    assert tuple(choice["prompt_token_ids"]) == tokens("Hi")


def test_prompt_logprobs():
    prompt = tokens("Hi you")
    for body in (
        APP.complete(prompt="Hi you", prompt_logprobs=1).json()["choices"][0],
        InProcess(says("x")).post("/inference/v1/generate", generate_body(prompt)).json(),
    ):
        found = body["prompt_logprobs"]
        assert found[0] is None and len(found) == len(prompt)
        assert found[1][str(prompt[1])]["logprob"] == token_logprob(prompt[1], 0).logprob


def generate_body(prompt):
    return {"token_ids": prompt, "sampling_params": {"prompt_logprobs": 1}}


def test_best_of_takes_the_likeliest():
    """Each candidate's script is one token; the likelier tokens must come back, best first."""

    def script(request):
        return Script((40 + int(request.request_id.rpartition("-")[2]),))

    body = InProcess(ScriptedEngine(script, model=MODEL)).complete(
        best_of=5, n=2, return_token_ids=True, seed=1
    )
    ranked = sorted(range(40, 45), key=lambda i: -token_logprob(i, 0).logprob)
    assert [c["token_ids"][0] for c in body.json()["choices"]] == ranked[:2]
    assert [c["index"] for c in body.json()["choices"]] == [0, 1]
    assert body.json()["choices"][0]["logprobs"] is None
    assert body.json()["usage"]["completion_tokens"] == 5


def test_special_tokens_in_answers():
    engine = says("a<|im_end|>b")
    assert InProcess(engine).complete().json()["choices"][0]["text"] == "ab"
    body = InProcess(engine).complete(skip_special_tokens=False).json()
    assert body["choices"][0]["text"] == "a<|im_end|>b"


@pytest.mark.parametrize(
    ("end", "options", "text"),
    [
        ("<|im_end|>", {"skip_special_tokens": False}, "Hello"),
        ("<|im_end|>", {"skip_special_tokens": False, "include_stop_str_in_output": True}, None),
        (" world", {}, "Hello"),
        (" world", {"include_stop_str_in_output": True}, "Hello world"),
    ],
)
def test_the_token_that_ends_an_answer_is_no_part_of_it(end, options, text):
    [end_id] = tokens(end)
    stop_token_id = None if end.startswith("<") else end_id
    engine = ScriptedEngine(Script((*tokens("Hello"), end_id), stop_token_id=stop_token_id))
    body = InProcess(engine).complete(**options, logprobs=1).json()
    assert body["choices"][0]["text"] == (text or f"Hello{end}")
    assert body["usage"]["completion_tokens"] == len(tokens("Hello")) + 1
    assert len(body["choices"][0]["logprobs"]["tokens"]) == len(tokens("Hello")) + 1


def test_the_stop_token_that_ended_an_answer():
    engine = ScriptedEngine(Script((*tokens("Hello"), 17), stop_token_id=17), model=MODEL)
    choice = InProcess(engine).complete().json()["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("Hello", 17)


def test_defaults_of_the_models_authors():
    from common.api.app import ApiSettings
    from common.metrics import Metrics
    from common.text import TextModel
    from tests.common.made_tokenizers import byte_level

    text = TextModel(byte_level(), sampling_defaults={"temperature": 0.6, "top_k": 20})
    engine = says("x")
    app = InProcess(engine)
    app._app = create_app(engine, lambda model: text, Metrics(), ApiSettings())
    app.complete()
    app.complete(temperature=0, top_k=0)
    first, second = (request.sampling for request in engine.requests)
    assert (first.temperature, first.top_k) == (0.6, 20)
    assert (second.temperature, second.top_k) == (0.0, 0)


# --- tokens --------------------------------------------------------------------------------------


def test_tokenize_and_back():
    body = APP.post("/tokenize", {"prompt": "Hello é", "return_token_strs": True}).json()
    assert tuple(body["tokens"]) == tokens("Hello é")
    assert body["count"] == len(body["token_strs"]) == len(body["tokens"])
    assert body["max_model_len"] == 2048
    assert APP.post("/detokenize", {"tokens": body["tokens"]}).json() == {"prompt": "Hello é"}
    chat = APP.post("/tokenize", {"messages": USER}).json()
    assert text_model().decode(chat["tokens"]).endswith("<|im_start|>assistant\n")
    error_of(APP.post("/detokenize", {"tokens": [99999]}), 400)
    error_of(APP.post("/tokenize", {}), 400)


def test_generate():
    engine = says("Hello world", num_cached_tokens=1)
    app = InProcess(engine)
    ask = {
        "token_ids": [1, 2, 3],
        "sampling_params": {"max_tokens": 1, "logprobs": 1, "n": 2, "seed": 3},
        "output_mode": "text",
        "request_id": "mine",
    }
    body = app.post("/inference/v1/generate", ask).json()
    assert body["request_id"] == "mine"
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert engine.requests[0].prompt_token_ids == (1, 2, 3)
    for choice in body["choices"]:
        assert tuple(choice["token_ids"]) == tokens("Hello world")[:1]
        assert choice["finish_reason"] == "length"
        assert choice["text"]
        entries = choice["logprobs"]["content"]
        assert [e["token_id"] for e in entries] == choice["token_ids"]
    chunks = events(app.post("/inference/v1/generate", {**ask, "stream": True}))
    mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == 0]
    assert [i for c in mine for i in c["token_ids"]] == body["choices"][0]["token_ids"]
    assert "".join(c["text"] for c in mine) == body["choices"][0]["text"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [-1]}, "token_ids[0]"),
        ({"token_ids": [99999]}, "token_ids"),
        ({"token_ids": [1], "sampling_params": {"n": 0}}, "sampling_params.n"),
        ({"token_ids": [1], "sampling_params": {"guided_json": "{"}}, "guided_json"),
        ({"token_ids": [1], "kv_transfer_params": {"x": 1}}, "kv_transfer_params"),
    ],
)
def test_generate_refuses(body, param):
    error = error_of(APP.post("/inference/v1/generate", body), 400)
    assert param is None or error["param"] == param


def test_a_generate_request_is_aborted_by_its_name():
    import asyncio

    import httpx

    engine = ScriptedEngine(Script(tokens("x") * 1000, delay_s=0.1), model=MODEL)
    app = InProcess(engine, api_keys=("a", "b"))._app

    async def run(client, key):
        headers = {"x-api-key": key}
        ask = {"token_ids": [1], "request_id": "mine"}
        running = asyncio.create_task(
            client.post("/inference/v1/generate", json=ask, headers=headers)
        )
        for _ in range(6000):
            if engine.running:
                break
            await asyncio.sleep(0.01)
        assert engine.running
        abort = {"request_ids": ["mine", "unknown"]}
        others = {"x-api-key": "b" if key == "a" else "a"}
        await client.post("/inference/v1/abort_requests", json=abort, headers=others)
        await asyncio.sleep(0.05)
        assert engine.running  # another tenant's word does not count
        done = await client.post("/inference/v1/abort_requests", json=abort, headers=headers)
        assert (done.status_code, done.content) == (200, b"")
        return await running

    async def main():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", trust_env=False
        ) as client:
            return await run(client, "a")

    assert error_of(asyncio.run(main()), 400)["code"] == "request_aborted"
    assert not engine.running and len(engine.aborted) == 1
