"""Anthropic's messages of blocks as the messages that chat templates know. Knows no tokens.

One message of theirs can be several of ours: results of tools are messages of their own, before
and after what the user says beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from common.api.anthropic.protocol import Blocks, CountTokensRequest, InputMessage
from common.errors import BadRequest

Entry = dict[str, Any]


def messages_of(ask: CountTokensRequest) -> list[Entry]:
    """Raises BadRequest naming the first block that cannot be read."""
    messages: list[Entry] = []
    if ask.system:
        messages.append({"role": "system", "content": _text(ask.system, "system")})
    for n, message in enumerate(ask.messages):
        read = _assistant if message.role == "assistant" else _others
        messages += read(message, f"messages.{n}.content")
    return messages


def is_begun(ask: CountTokensRequest) -> bool:
    """Does the conversation end in an answer that the model is to go on with?"""
    last = ask.messages[-1]
    if last.role != "assistant":
        return False
    return isinstance(last.content, str) or all(b.get("type") == "text" for b in last.content)


def _assistant(message: InputMessage, where: str) -> list[Entry]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Entry] = []
    for block, place in _blocks(message.content, where):
        if block["type"] == "text":
            texts.append(_string(block, "text", place))
        elif block["type"] == "thinking":
            thoughts.append(_string(block, "thinking", place))
        elif block["type"] == "tool_use":
            calls.append(_call(block, place))
        else:
            raise _unknown(block, place)
    entry: Entry = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        entry["reasoning"] = "\n".join(thoughts)
    if calls:
        entry["tool_calls"] = calls
    return [entry]


def _others(message: InputMessage, where: str) -> list[Entry]:
    entries: list[Entry] = []
    texts: list[str] = []

    def flush() -> None:
        if texts:
            entries.append({"role": message.role, "content": "\n".join(texts)})
            texts.clear()

    for block, place in _blocks(message.content, where):
        if block["type"] == "text":
            texts.append(_string(block, "text", place))
        elif block["type"] == "tool_result" and message.role == "user":
            flush()
            entries.append(_result(block, place))
        else:
            raise _unknown(block, place)
    flush()
    return entries


def _call(block: Entry, place: str) -> Entry:
    arguments = block.get("input", {})
    if not isinstance(arguments, dict):
        raise BadRequest(f"{place}.input: must be an object", f"{place}.input")
    return {
        "id": _string(block, "id", place),
        "function": {
            "name": _string(block, "name", place),
            "arguments": json.dumps(arguments, ensure_ascii=False),
        },
    }


def _result(block: Entry, place: str) -> Entry:
    """Templates know no errors of tools, so the text says that it is one."""
    content = _text(block.get("content") or "", f"{place}.content")
    if block.get("is_error"):
        content = f"Error: {content}"
    call_id = _string(block, "tool_use_id", place)
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _text(content: Any, where: str) -> str:
    texts = []
    for block, place in _blocks(content, where):
        if block["type"] != "text":
            raise _unknown(block, place)
        texts.append(_string(block, "text", place))
    return "\n".join(texts)


def _blocks(content: str | Blocks, where: str) -> Iterator[tuple[Entry, str]]:
    """Each with its place, for whoever has to mend it. A string is one block of text."""
    if isinstance(content, str):
        yield {"type": "text", "text": content}, where
        return
    if not isinstance(content, list):
        raise BadRequest(f"{where}: must be a string or a list of blocks", where)
    for n, block in enumerate(content):
        place = f"{where}.{n}"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise BadRequest(f"{place}: must be an object with a type", place)
        yield block, place


def _string(block: Entry, name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"{place}.{name}: must be a string", f"{place}.{name}")
    return value


def _unknown(block: Entry, place: str) -> BadRequest:
    kind = block["type"][:64]
    return BadRequest(f"{place}: blocks of type {kind!r} are not supported here", place)
