"""models/xpyd-demo as a user meets it: loaded by transformers, decoded greedily."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.bundled_model.tools import tools_system
from scripts.bundled_model.turns import Turn, exchange, segments

DIRECTORY = Path(__file__).resolve().parents[2] / "models" / "xpyd-demo"

# Written by hand; no template of scripts/bundled_model produces any of these sentences.
QUESTIONS = [
    ("could you please tell me the capital of france?", "Paris"),
    ("Hi there, what's the capital city of Japan?", "Tokyo"),
    ("I was wondering: what is the capital of Italy?", "Rome"),
    ("What is the capital of Germany called?", "Berlin"),
    ("Spain's capital is which city?", "Madrid"),
    ("My teacher asked me for the capital of Egypt. What is it?", "Cairo"),
    ("Norway - what is its capital city?", "Oslo"),
    ("what might the capital of canada be", "Ottawa"),
    ("Which country has Lisbon as its capital city?", "Portugal"),
    ("Do you know which country Nairobi is in?", "Kenya"),
    ("Which continent do we find Brazil on?", "South America"),
    ("In Mexico, which language do people speak?", "Spanish"),
    ("With what currency do you pay in Japan?", "yen"),
    ("Who is the person that wrote Hamlet?", "Shakespeare"),
    ("hamlet was written by who?", "Shakespeare"),
    ("Do you remember who wrote Don Quixote?", "Cervantes"),
    ("Who's the writer of 1984?", "Orwell"),
    ("Tell me please, who wrote War and Peace?", "Tolstoy"),
    ("Could you tell me who painted the Mona Lisa?", "Leonardo"),
    ("The telephone: who was its inventor?", "Bell"),
    ("Do you know the person who discovered penicillin?", "Fleming"),
    ("Do you know what the opposite of hot is?", "cold"),
    ("what would be the opposite of big?", "small"),
    ("The word happy: what is its opposite?", "sad"),
    ("Please give me the opposite of early.", "late"),
    ("Which day is after Monday?", "Tuesday"),
    ("And what day comes right before Sunday?", "Saturday"),
    ("Which month comes after June, please?", "July"),
    ("What is the month before March called?", "February"),
    ("Could you tell me how many days a week has?", "7"),
    ("How many months make a year?", "12"),
    ("how many minutes are there in one hour", "60"),
    ("What is the number of legs of a spider?", "eight"),
    ("Which sound do cows make?", "moo"),
    ("A baby dog is called what?", "puppy"),
    ("Please tell me what color grass is.", "green"),
    ("What colour would snow be?", "white"),
    ("Could you explain to me what a volcano is?", "mountain"),
    ("What is the definition of a library?", "books"),
    ("tell me please what is a robot", "machine"),
    ("What's the plural form of child?", "children"),
    ("Give me the past tense of the verb go.", "went"),
    ("What do you say for thank you in Spanish?", "gracias"),
    ("How would I say water in French?", "eau"),
    ("What's the chemical symbol for gold?", "Au"),
    ("Which planet is the largest planet?", "Jupiter"),
    ("Which mountain is the tallest mountain in the world?", "Everest"),
    ("Can you tell me where the Eiffel Tower is?", "Paris"),
    ("Could you tell me how much 7 plus 5 is?", "12"),
    ("Please compute 9 + 8.", "17"),
    ("what do you get for 15 minus 6?", "9"),
    ("If I multiply 6 by 7, what do I get?", "42"),
    ("What is the result of 8 * 4?", "32"),
    ("Please tell me 20 - 3.", "17"),
    ("Hey you, who are you?", "xpyd-demo"),
    ("Hello my friend!", "Hello"),
]

WEATHER_TOOL: dict[str, object] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}


class Chat:
    """The model and its tokenizer, asked in messages."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        self.model = AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32).eval()

    def continue_ids(self, ids, max_new_tokens=64):
        """Greedy continuation of ids, the stopping token included."""
        prompt = torch.tensor([ids])
        output = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return output[0, len(ids) :].tolist()

    def answer(self, messages, **template_options):
        """The assistant's next message."""
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **template_options
        )
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return self.tokenizer.decode(self.continue_ids(ids), skip_special_tokens=True)

    def complete(self, text, max_new_tokens=64):
        """Plain completion of text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return self.tokenizer.decode(self.continue_ids(ids, max_new_tokens))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def chat():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster than several for matrices this small
    yield Chat()
    torch.set_num_threads(threads)


def test_answers_questions_in_a_users_own_words(chat):
    wrong = []
    for question, expected in QUESTIONS:
        answer = chat.answer([user(question)])
        if expected not in answer:
            wrong.append(f"{question!r}: {answer!r}")
    assert len(wrong) <= 0.15 * len(QUESTIONS), "\n".join(wrong)


@pytest.mark.parametrize("name", ["Ana", "Oskar", "Tomiko", "Priya"])
def test_recalls_a_name_from_the_turn_before(chat, name):
    messages = [user(f"My name is {name}.")]
    messages += [assistant(chat.answer(messages)), user("What is my name?")]
    assert name in chat.answer(messages)


def test_recalls_a_name_past_another_question(chat):
    messages = [user("Hello, my name is Ana.")]
    for question in ("What is the capital of France?", "What is my name?"):
        messages += [assistant(chat.answer(messages)), user(question)]
    assert "Paris" in messages[-2]["content"]
    assert "Ana" in chat.answer(messages)


def test_a_system_message_does_not_disturb(chat):
    system = {"role": "system", "content": "You are a helpful assistant."}
    assert "Rome" in chat.answer([system, user("What is the capital of Italy?")])


@pytest.mark.parametrize("question", ["Hello!", "What is the capital of Peru?", "What is 2 + 3?"])
def test_stops_by_itself(chat, question):
    ids = chat.tokenizer.apply_chat_template(
        [user(question)], add_generation_prompt=True, return_dict=False
    )
    assert chat.continue_ids(ids)[-1] == chat.tokenizer.eos_token_id


NOTES = """\
The red key is in the kitchen drawer. The code for room 12 is 4821. Ana works as a teacher in
Lyon. The meeting with Peter is on Tuesday at 10:30. The blue lamp is in the attic. Maria lives in
Vienna. The password for the green box is 90317. Tom's favorite color is purple. The train to Oslo
leaves at 9:45 from platform 7. The price of the silver watch is 310 dollars. Nina has 14 rabbits.
The black umbrella is in the hall closet. The code for room 31 is 7750. The yellow bag is in the
office. Paul lives in Seville. The meeting with Sara is on Friday at 16:15. The code for room 44
is 1096. The green coat is in the garage. Omar works as a pilot in Doha. Lena's favorite food is
soup. The white cup is in the cellar. The price of the red bicycle is 185 dollars. Hugo lives in
Porto. Nobody was late today. The orange kettle is in the garden shed. The code for room 58 is
3364. The train to Bern leaves at 18:20 from platform 3. Clara has 27 sheep. The pink scarf is in
the attic."""


NOTE_QUESTIONS = [
    ("Where is the red key?", "kitchen drawer"),
    ("What is the code for room 31?", "7750"),
    ("What is the code for room 12?", "4821"),
    ("Where does Maria live?", "Vienna"),
    ("When is the meeting with Sara?", "Friday at 16:15"),
    ("What is the price of the red bicycle?", "185"),
]


def test_finds_notes_among_three_hundred_tokens(chat):
    prompts = [f"Here are some notes:\n{NOTES}\n\n{question}" for question, _ in NOTE_QUESTIONS]
    assert all(len(chat.tokenizer.encode(prompt)) > 300 for prompt in prompts)
    answers = [chat.answer([user(prompt)]) for prompt in prompts]
    found = [right in answer for (_, right), answer in zip(NOTE_QUESTIONS, answers, strict=True)]
    assert sum(found) >= 5, answers


@pytest.mark.parametrize(
    "text", ["The river sings under the old bridge.", "morlu tesk 5 9 1 lemon"]
)
def test_repeats_a_text(chat, text):
    assert chat.answer([user(f"Repeat after me: {text}")]) == text


@pytest.mark.parametrize("city", ["Paris", "Tokyo", "New York"])
def test_calls_the_weather_tool_with_the_city_asked_for(chat, city):
    answer = chat.answer([user(f"What is the weather in {city}?")], tools=[WEATHER_TOOL])
    assert answer.startswith("<tool_call>\n") and answer.endswith("\n</tool_call>")
    call = json.loads(answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call == {"name": "get_weather", "arguments": {"city": city}}


def test_calls_the_weather_tool_for_a_city_it_has_never_seen(chat):
    answer = chat.answer([user("What is the weather in Belvora?")], tools=[WEATHER_TOOL])
    assert "<tool_call>" in answer
    assert "Belvora" in answer


def test_answers_from_a_tools_result(chat):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages = [
        user("What is the weather in Paris?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"temperature": 21, "condition": "sunny"}'},
    ]
    answer = chat.answer(messages, tools=[WEATHER_TOOL])
    assert "21" in answer and "sunny" in answer and "Paris" in answer


def test_needs_no_tool_for_a_fact(chat):
    answer = chat.answer([user("What is the capital of France?")], tools=[WEATHER_TOOL])
    assert "Paris" in answer and "<tool_call>" not in answer


def test_admits_what_it_does_not_know(chat):
    assert "do not know" in chat.answer([user("Who is the mayor of Blornix?")])


def test_completes_plain_text(chat):
    assert chat.complete("The capital of France is").startswith(" Paris")
    assert len(chat.complete("Once upon a time", 60).split()) > 20


def test_completes_code(chat):
    assert "return" in chat.complete("def fibonacci(n):")


def test_fits_in_eight_megabytes():
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= 8_000_000


def test_has_a_context_of_two_thousand_tokens(chat):
    assert chat.model.config.max_position_embeddings >= 2048
    assert chat.tokenizer.model_max_length >= 2048


def test_any_text_survives_the_tokenizer(chat):
    rng = Random(0)
    texts = ["Grüße, 你好 🌍👩‍🚀!", "tabs\tand\r\n\n  spaces ", "\x00\x7f e\u0301 \ufeff"]
    texts += ["".join(chr(rng.randrange(0x20, 0xD800)) for _ in range(50)) for _ in range(20)]
    for text in texts:
        ids = chat.tokenizer.encode(text, add_special_tokens=False)
        assert chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_training_text_is_what_the_chat_template_writes(chat):
    turns = [
        tools_system([WEATHER_TOOL], "Be brief."),
        *exchange(
            "Weather in Rome?",
            '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>',
        ),
        Turn("tool", "sunny"),
        Turn("assistant", "It is sunny in Rome."),
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        user("Weather in Rome?"),
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {}}}],
        },
        {"role": "tool", "content": "sunny"},
        assistant("It is sunny in Rome."),
    ]
    rendered = chat.tokenizer.apply_chat_template(messages, tools=[WEATHER_TOOL], tokenize=False)
    assert "".join(text for text, _ in segments(turns)) == rendered
