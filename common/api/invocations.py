"""POST /invocations: SageMaker's one path for everything; the body's fields say what is meant."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.chat import create_chat_completion
from common.api.completions import create_completion
from common.api.generation import Service
from common.errors import BadRequest


async def invoke(service: Service, request: Request) -> Response:
    body = await read_object(request, service.settings)
    if "messages" in body:
        return await create_chat_completion(service, request)
    if "prompt" in body:
        return await create_completion(service, request)
    raise BadRequest("send `messages` for a chat or `prompt` for a completion", "messages")
