"""Tools: the system turn that lists them, calls, results, and answers that use the results."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from scripts.bundled_model import names
from scripts.bundled_model.fact_skill import fact
from scripts.bundled_model.skills import chatter
from scripts.bundled_model.sums import sums
from scripts.bundled_model.tokenizer import TOOLS_EPILOGUE, TOOLS_PREAMBLE
from scripts.bundled_model.turns import Exchange, Turn, exchange
from scripts.bundled_model.wording import restyle
from scripts.bundled_model.words import lines, words

JsonObject = dict[str, object]

WEATHER_NAMES = words("""
get_weather get_weather get_weather get_current_weather weather current_weather fetch_weather
weather_lookup getWeather lookup_weather get_weather_report weather_report check_weather
""")
TIME_NAMES = words("get_time get_current_time time current_time local_time getTime")
PLACE_KEYS = words("city city city location location place town city_name where")
WEATHER_TEXTS = lines("""
    Get the weather of a city.
    Get the current weather in a given location
    Current weather for a place.
    Returns the weather.
    Get current temperature for a given location.
    Look up the weather
""")
WEATHER_FORMS = lines("""
    What is the weather in {c}?
    What's the weather in {c}?
    What is the weather like in {c}?
    What's the weather like in {c} today?
    How is the weather in {c}?
    How's the weather in {c} today?
    Tell me the weather in {c}.
    What is the temperature in {c}?
    How warm is it in {c}?
    How cold is it in {c} now?
    Is it raining in {c}?
    Is it sunny in {c}?
    Will it rain in {c} today?
    Weather in {c}?
    Give me the weather for {c}.
    Can you check the weather in {c}?
    Do I need an umbrella in {c}?
    What is the current weather in {c}?
    Please look up the weather in {c}.
    I want to know the weather in {c}.
    Weather for {c} please
    I am going to {c}. What is the weather there?
    What weather does {c} have today?
""")
WEATHER_HELD_OUT = lines("""
    Could you tell me what the weather is like in {c}?
    How hot is it in {c} right now?
    What's the weather like in {c} right now?
    Please tell me the current weather in {c}.
""")
TIME_FORMS = lines("""
    What time is it in {c}?
    What is the time in {c}?
    What is the current time in {c}?
    Tell me the time in {c}.
    How late is it in {c}?
    Time in {c}?
    Can you tell me what time it is in {c}?
""")
SKIES = words("sunny cloudy rainy windy foggy snowy stormy clear")
NO_TOOL = "I cannot look up the weather without a tool."


@dataclass(frozen=True, slots=True)
class ToolKind:
    """One offered function and how to ask for it."""

    name: str
    key: str  # of its one argument
    schema: JsonObject
    forms: tuple[str, ...]
    is_weather: bool


def tool_schema(rng: Random, name: str, key: str, text: str) -> JsonObject:
    """An OpenAI tool description with one string argument, in one of its usual spellings."""
    argument: JsonObject = {"type": "string"}
    if rng.random() < 0.4:
        argument["description"] = rng.choice(("The city", f"The {key}", "Name of the city", "City"))
    parameters: JsonObject = {"type": "object", "properties": {key: argument}}
    if rng.random() < 0.75:
        parameters["required"] = [key]
    function: JsonObject = {"name": name, "description": text, "parameters": parameters}
    if rng.random() < 0.1:
        del function["description"]
    if rng.random() < 0.15:
        parameters["properties"] = {
            key: argument,
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        }
    return {"type": "function", "function": function}


def weather_tool(rng: Random) -> ToolKind:
    """A weather function under a varying name."""
    name, key = rng.choice(WEATHER_NAMES), rng.choice(PLACE_KEYS)
    schema = tool_schema(rng, name, key, rng.choice(WEATHER_TEXTS))
    return ToolKind(name, key, schema, WEATHER_FORMS, True)


def time_tool(rng: Random) -> ToolKind:
    """A clock function under a varying name."""
    name, key = rng.choice(TIME_NAMES), rng.choice(PLACE_KEYS)
    schema = tool_schema(rng, name, key, "Get the current time in a city.")
    return ToolKind(name, key, schema, TIME_FORMS, False)


def tools_system(schemas: list[JsonObject], system: str | None) -> Turn:
    """The system turn the chat template writes for these tools."""
    listed = "".join(f"\n{json.dumps(schema, ensure_ascii=False)}" for schema in schemas)
    lead = f"{system}\n\n" if system else ""
    return Turn("system", f"{lead}{TOOLS_PREAMBLE}{listed}{TOOLS_EPILOGUE}")


def tool_call(tool: ToolKind, place: str) -> str:
    """The text of a call."""
    call = {"name": tool.name, "arguments": {tool.key: place}}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def weather_result(rng: Random, place: str) -> tuple[str, str]:
    """What a weather function returned, and the sentence that says it."""
    sky, degrees = rng.choice(SKIES), rng.randint(-15, 42)
    fields = [("temperature", degrees), (rng.choice(("condition", "sky", "conditions")), sky)]
    if rng.random() < 0.3:
        fields[0] = (rng.choice(("temp_c", "temperature_c", "temp", "celsius")), degrees)
    if rng.random() < 0.4:
        fields.insert(0, (rng.choice(("city", "location")), place))
    if rng.random() < 0.3:
        fields.append(("unit", "celsius"))
    if rng.random() < 0.3:
        fields.append(("humidity", rng.randint(10, 99)))
    if rng.random() < 0.3:
        rng.shuffle(fields)
    both = f"It is {sky} and {degrees} degrees in {place}."
    kind = rng.random()
    if kind < 0.65:
        return json.dumps(dict(fields), ensure_ascii=False), both
    if kind < 0.85:
        plain = rng.choice(
            ("{s}, {d} degrees", "{s} and {d} degrees", "{d} degrees, {s}", "{d}°C, {s}")
        )
        return plain.format(s=sky, d=degrees), both
    if kind < 0.93:
        return json.dumps({"temperature": degrees}), f"It is {degrees} degrees in {place}."
    return sky, f"It is {sky} in {place}."


def time_result(rng: Random, place: str) -> tuple[str, str]:
    """What a clock function returned, and the sentence that says it."""
    clock = f"{rng.randint(0, 23)}:{rng.randint(10, 59)}"
    raw = json.dumps({"time": clock}) if rng.random() < 0.6 else clock
    return raw, f"It is {clock} in {place}."


def called(tool: ToolKind, rng: Random) -> Exchange:
    """A question, the call it needs, and mostly the result and the answer too."""
    place = names.city(rng)
    question = rng.choice(tool.forms).format(c=place)
    if rng.random() < 0.3:
        question = rng.choice((f"Hi! {question}", question.rstrip("?."), f"Please: {question}"))
    turns = exchange(question, tool_call(tool, place))
    if rng.random() < 0.75:
        result = weather_result if tool.is_weather else time_result
        raw, answer = result(rng, place)
        turns += [Turn("tool", raw), Turn("assistant", answer)]
    return turns


def tool_chat(rng: Random, system: str | None) -> Exchange:
    """A chat with one or two tools on offer, some questions of which need none."""
    makers: list[Callable[[Random], ToolKind]] = [weather_tool]
    if rng.random() < 0.35:
        makers = rng.sample([weather_tool, time_tool], 2)
    tools = [maker(rng) for maker in makers]
    turns: Exchange = [tools_system([tool.schema for tool in tools], system)]
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.65:
            turns += called(rng.choice(tools), rng)
        else:
            turns += rng.choice((fact, fact, chatter, sums))(rng)
    return turns


def weather_without_tool(rng: Random) -> Exchange:
    """A weather question when nothing can be called."""
    forms = (*WEATHER_FORMS, "What is the weather like?", "How is the weather today?")
    return exchange(restyle(rng.choice(forms).format(c=names.city(rng)), rng), NO_TOOL)
