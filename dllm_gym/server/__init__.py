"""OpenAI's protocol over HTTP, answered by the engine: ``dllm-gym serve``.

``scheduling`` decides who is decoded when, ``team`` lets every request have an agent of its own, ``final``
says what of an answer can no longer change. They know nothing of HTTP: ``asked`` reads requests, ``told``
writes answers, ``app`` has the routes, ``serving`` makes and runs it all.
"""

from __future__ import annotations

from dllm_gym.server.serving import make_app, running, serve

__all__ = ["make_app", "running", "serve"]
