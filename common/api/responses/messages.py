"""Items as the messages of a chat, for the model's template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from common.api.protocol import FunctionCall, Message, ToolCall
from common.api.responses.items import (
    CallItem,
    CallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from common.errors import BadRequest


def messages_of(items: Sequence[Item], instructions: str | None) -> list[Message]:
    """The conversation as the chat template sees it. What the assistant said in one turn
    (reasoning, text, calls) is one message there. Raises BadRequest."""
    turns = _Turns()
    for item in items:
        if isinstance(item, CallOutputItem):
            turns.tool(item)
        elif isinstance(item, MessageItem) and item.role != "assistant":
            turns.other(item.role, item.text)
        else:
            turns.assistant(item)
    messages = turns.close()
    if not instructions:
        return messages
    if messages and messages[0].role in ("system", "developer"):
        # Many templates take one such message, at the start.
        first = messages[0]
        joined = f"{instructions}\n\n{first.content}"
        return [Message(role=first.role, content=joined), *messages[1:]]
    return [Message(role="system", content=instructions), *messages]


class _Turns:
    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._names: dict[str, str] = {}  # of called functions, by call id
        self._reset()

    def _reset(self) -> None:
        self._reasoning: list[str] = []
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []

    def close(self) -> list[Message]:
        """End the assistant's turn, if one is open."""
        if self._reasoning or self._texts or self._calls:
            self._messages.append(
                Message(
                    role="assistant",
                    content="\n\n".join(self._texts) if self._texts else None,
                    reasoning="\n\n".join(self._reasoning) or None,
                    tool_calls=self._calls,
                )
            )
        self._reset()
        return self._messages

    def other(self, role: Literal["user", "system", "developer"], text: str) -> None:
        self.close().append(Message(role=role, content=text))

    def tool(self, item: CallOutputItem) -> None:
        if item.call_id not in self._names:
            raise BadRequest(
                f"input: there is no function_call with call_id {item.call_id[:64]!r}", "input"
            )
        message = Message(
            role="tool",
            content=item.text,
            tool_call_id=item.call_id,
            name=self._names[item.call_id],
        )
        self.close().append(message)

    def assistant(self, item: Item) -> None:
        if isinstance(item, CallItem):
            function = FunctionCall(name=item.name, arguments=item.arguments)
            self._calls.append(ToolCall(id=item.call_id, function=function))
            self._names[item.call_id] = item.name
        elif isinstance(item, ReasoningItem):
            if self._texts or self._calls:
                self.close()
            if item.text:
                self._reasoning.append(item.text)
        elif isinstance(item, MessageItem):
            if self._texts and not self._calls:
                self.close()
            self._texts.append(item.text)
