"""The messages of a composed conversation and their ChatML text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scripts.bundled_model.tokenizer import END_OF_TURN, START_OF_TURN


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation; the model is trained on the assistant's."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str


Exchange = list[Turn]  # user first, assistant last


def exchange(question: str, answer: str) -> Exchange:
    """One question and its answer."""
    return [Turn("user", question), Turn("assistant", answer)]


def segments(turns: Sequence[Turn]) -> list[tuple[str, bool]]:
    """The conversation as pieces of text, each with whether the model is trained on it.

    Joined, the pieces are what the chat template renders; no token crosses a border.
    """
    pieces: list[tuple[str, bool]] = []
    for turn in turns:
        if turn.role == "assistant":
            pieces.append((f"{START_OF_TURN}assistant\n", False))
            pieces.append((f"{turn.text}{END_OF_TURN}", True))
            pieces.append(("\n", False))
        elif turn.role == "tool":
            response = f"<tool_response>\n{turn.text}\n</tool_response>"
            pieces.append((f"{START_OF_TURN}user\n{response}{END_OF_TURN}\n", False))
        else:
            pieces.append((f"{START_OF_TURN}{turn.role}\n{turn.text}{END_OF_TURN}\n", False))
    return pieces
