"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.completions = Counter(
            "dllm_gym_completions",
            "Completions that are over: stop, length, cancelled, timeout, refused or failed.",
            ["outcome"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "dllm_gym_prompt_tokens", "Tokens of the prompts that were accepted.", registry=registry
        )
        self.completion_tokens = Counter(
            "dllm_gym_completion_tokens", "Tokens of the completions that were finished.", registry=registry
        )
        self.forwards = Counter("dllm_gym_forwards", "Forwards of the dLLM.", registry=registry)
        self.steps = Counter(
            "dllm_gym_steps", "Rows of these forwards: divided by them, the mean batch.", registry=registry
        )
        self.running = Gauge("dllm_gym_running", "Completions that are being written.", registry=registry)
        self.waiting = Gauge("dllm_gym_waiting", "Completions that wait for a row.", registry=registry)
        self.seconds = Histogram(
            "dllm_gym_seconds",
            "Seconds from the arrival of a completion's request to its end.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.waited = Histogram(
            "dllm_gym_waiting_seconds",
            "Seconds of these before it had a row.",
            buckets=_SECONDS,
            registry=registry,
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
