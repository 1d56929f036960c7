"""The ``dllm-gym`` command."""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dllm_gym.evaluation import Profile
    from dllm_gym.prompts import Prompt
    from dllm_gym.speeds import Speed

app = typer.Typer(
    name="dllm-gym",
    help="Learn which tokens a diffusion language model reveals next.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=True)

JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the results as JSON; - for standard output."),
]
TaskOption = Annotated[str, typer.Option(help="Registered task.")]
TaskKwargsOption = Annotated[str, typer.Option(help="The task's parameters as JSON.")]
BackendOption = Annotated[
    str | None, typer.Option(help="Name, checkpoint directory or hub id; default: the task's embedded dLLM.")
]
AgentOption = Annotated[str, typer.Option(help="Strategy (fast-dllm:threshold=0.8) or path of a policy.")]
BlockOption = Annotated[str, typer.Option(help="Block length, or 'full' for full diffusion.")]
EpisodesOption = Annotated[int, typer.Option(min=1, help="Number of problems.")]
SplitOption = Annotated[str, typer.Option(help="train, validation or test.")]
AlphaOption = Annotated[float, typer.Option(min=0.0, help="Exponent of the step price.")]
SeedOption = Annotated[int, typer.Option(help="Seeds sampling, never the problems.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16 or auto; default: float32 on a CPU.")
]


BackendKwargsOption = Annotated[
    str,
    typer.Option(help='The dLLM\'s keywords as JSON, such as \'{"device": "cuda:1", "cache": "dual"}\'.'),
]


@app.command("list")
def list_(json_file: JsonOption = None) -> None:
    """List embedded dLLMs, tasks, strategies, learned policies and families of checkpoints."""
    from dllm_gym.backends import backend_names
    from dllm_gym.backends.families import FAMILIES
    from dllm_gym.plugins import plugins
    from dllm_gym.strategies import make_strategy, strategy_names
    from dllm_gym.tasks import task_names

    content: dict[str, list[str]] = {
        "backends": backend_names(),
        "tasks": task_names(),
        "strategies": [make_strategy(name).label for name in strategy_names()],
        "policies": [name for plugin in plugins() for name in plugin.agent_names()],
    }
    for kind, names in content.items():
        console.print(f"[bold]{kind}[/bold]: {', '.join(names)}", highlight=False)
    families = [{"name": f.name, "published": f.published, "verified": f.verified} for f in FAMILIES]
    console.print(
        "[bold]families[/bold] of checkpoints, by directory or hub id (no published weights were run):"
    )
    for family in families:
        published = f" ({', '.join(family['published'])})" if family["published"] else ""
        console.print(f"  {family['name']}{published}: {family['verified']}", highlight=False)
    _write_json({**content, "families": families}, json_file)


@app.command()
def evaluate(
    agent: AgentOption,
    task: TaskOption = "arithmetic",
    task_kwargs: TaskKwargsOption = "{}",
    backend: BackendOption = None,
    block_length: BlockOption = "full",
    episodes: EpisodesOption = 1000,
    split: SplitOption = "test",
    alpha: AlphaOption = 1.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    backend_kwargs: BackendKwargsOption = "{}",
    output: Annotated[
        Path | None,
        typer.Option(help="Append every finished episode here (.jsonl): an interrupted evaluation goes on."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate one agent on a task's problems."""
    from dllm_gym.evaluation import evaluate as run

    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(escape(agent), total=episodes)
        result = run(
            agent,
            episodes,
            split,
            seed=seed,
            on_episode=lambda _: progress.advance(bar),
            output=output,
            **_environment(task, task_kwargs, backend, block_length, alpha, dtype, backend_kwargs),
        )
    row = result.to_json()
    console.print(_table([row]))
    _write_json([row], json_file)


@app.command()
def compare(
    agent: Annotated[
        list[str] | None,
        typer.Option(help="Path of a policy or run, or another strategy; may be given several times."),
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="With which heuristics to compare: none, short (8 settings) or full (52).")
    ] = "full",
    task: TaskOption = "arithmetic",
    task_kwargs: TaskKwargsOption = "{}",
    backend: BackendOption = None,
    block_length: BlockOption = "full",
    episodes: EpisodesOption = 1000,
    split: SplitOption = "test",
    alpha: AlphaOption = 1.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    backend_kwargs: BackendKwargsOption = "{}",
    plot: Annotated[Path | None, typer.Option(help="Write the Pareto plot here (.png, .pdf).")] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Directory for episodes and results: an interrupted comparison goes on."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Compare agents, and heuristics over their parameters, on the same problems."""
    from dllm_gym.evaluation import as_agent, sweep
    from dllm_gym.evaluation import compare as run

    if plot is not None:
        from dllm_gym.evaluation.figures import picture_format

        picture_format(plot)  # tells now what it could not draw at the end
    agents = [as_agent(text) for text in agent or []]
    rules = sweep(strategies)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("decoding", total=len(rules) + len(agents))
        comparison = run(
            agents,
            episodes,
            split,
            strategies=rules,
            seed=seed,
            on_result=lambda result: progress.update(bar, advance=1, description=escape(result.label)),
            keep=keep,
            **_environment(task, task_kwargs, backend, block_length, alpha, dtype, backend_kwargs),
        )
    rows = comparison.to_json()
    console.print(_table(rows))
    for gap in comparison.gaps():
        low, high = gap.difference_ci95
        interval = "" if math.isnan(low) else f" ({100 * low:+.1f} to {100 * high:+.1f})"
        console.print(
            f"{escape(gap.label)}: {100 * gap.accuracy:.1f} % at {gap.nfe_mean:.1f} steps, "
            f"{100 * gap.difference:+.1f} points{interval} "
            f"to the best mixture of strategies at the same number of steps",
            highlight=False,
        )
    _write_json(rows, json_file)
    if plot is not None:  # last: whatever goes wrong with it, the results are there
        comparison.plot(plot)
        _say("plot", plot)


@app.command()
def analyze(
    agent: Annotated[
        list[str] | None, typer.Option(help="Strategy or path of a policy; may be given several times.")
    ] = None,
    recording: Annotated[
        list[Path] | None, typer.Option(help="Episodes recorded before (.npz); may be given several times.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Directory for the page of plots, the numbers and the recorded episodes.")
    ] = Path("runs/analysis"),
    task: TaskOption = "arithmetic",
    task_kwargs: TaskKwargsOption = "{}",
    backend: BackendOption = None,
    block_length: BlockOption = "full",
    episodes: EpisodesOption = 200,
    split: SplitOption = "test",
    alpha: AlphaOption = 1.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    backend_kwargs: BackendKwargsOption = "{}",
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Leave out the positions from the first end token on.")
    ] = False,
    check_consistency: Annotated[
        bool,
        typer.Option(
            "--check-consistency",
            help="Ask the dLLM which tokens of the finished completions it would change; "
            "costs a row of a forward per position.",
        ),
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Show how agents decode: in which order, how fast, how sure, and where they go wrong."""
    from dllm_gym.evaluation import Recording, as_agent
    from dllm_gym.evaluation import analyze as run
    from dllm_gym.evaluation import evaluate as decode
    from dllm_gym.files import write_json

    loaded = [Recording.load(path) for path in recording or []]
    agents = [as_agent(text) for text in agent or []]
    environment = _environment(task, task_kwargs, backend, block_length, alpha, dtype, backend_kwargs)
    new: list[Recording] = []
    written: list[Path] = []
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("decoding", total=episodes * len(agents))
        for number, one in enumerate(agents, start=1):
            result = decode(
                one,
                episodes,
                split,
                record=True,
                check_consistency=check_consistency,
                seed=seed,
                on_episode=lambda _: progress.advance(bar),
                **environment,
            )
            assert result.recording is not None
            new.append(result.recording)
            name = "-".join([str(number), *re.findall(r"[\w.]+", result.label)])
            written.append(result.recording.save(output / f"{name}.npz"))
    analysis = run([*new, *loaded], text_only=text_only)
    console.print(_order_table(analysis.profiles))
    rows = analysis.to_json()
    written.append(write_json(output / "analysis.json", rows))
    _write_json(rows, json_file)
    analysis.plot(output / "analysis.png")
    for path in (*written, output / "analysis.png"):
        _say("written", path)


@app.command()
def play(
    agent: Annotated[
        list[str] | None,
        typer.Option(
            help="Strategy or path of a policy; given again, they decode side by side. "
            "Default: fast-dllm:threshold=0.9."
        ),
    ] = None,
    problem: Annotated[int, typer.Option(min=0, help="Index of the problem in the split.")] = 0,
    human: Annotated[
        bool, typer.Option("--human", help="Decode it yourself, then see how the agents did.")
    ] = False,
    speed: Annotated[float, typer.Option(help="Steps per second, on the screen and in films.")] = 4.0,
    gif: Annotated[Path | None, typer.Option(help="Write a film instead of showing it.")] = None,
    mp4: Annotated[Path | None, typer.Option(help="The same as a video; needs dllm-gym[video].")] = None,
    task: TaskOption = "arithmetic",
    task_kwargs: TaskKwargsOption = "{}",
    backend: BackendOption = None,
    block_length: BlockOption = "full",
    split: SplitOption = "test",
    alpha: AlphaOption = 1.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    backend_kwargs: BackendKwargsOption = "{}",
) -> None:
    """Watch agents decode a problem step by step, make a film of it, or decode it yourself."""
    from dllm_gym.envs.rendering import mp4_writer, save_gif, save_mp4
    from dllm_gym.looking import film as run
    from dllm_gym.looking.terminal import play as play_yourself
    from dllm_gym.looking.terminal import watch

    if mp4 is not None:
        mp4_writer()  # tells now if it is missing
    agents = agent or ["fast-dllm:threshold=0.9"]
    environment = _environment(task, task_kwargs, backend, block_length, alpha, dtype, backend_kwargs)
    options = {"problem": problem, "split": split, "seed": seed, **environment}
    if human:
        seen = play_yourself(agents, Console(), **options)
    elif gif or mp4:
        with console.status("decoding"):
            seen = run(agents, **options)
    else:
        seen = watch(agents, Console(), speed, **options)
    for path, save in ((gif, save_gif), (mp4, save_mp4)):
        if seen is not None and path is not None:
            save(seen.pictures(), path, fps=speed, hold_last=2.5)
            _say("film", path)


@app.command()
def report(
    run: Annotated[
        str, typer.Argument(help="Folder of a training run, or an agent: policy:NAME, a path, a strategy.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the run's folder, or here.")
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="With whom to compare it; may be given again. Default: fast-dllm:threshold=0.9."),
    ] = None,
    comparison: Annotated[
        Path | None,
        typer.Option(help="What compare --json wrote; default: compare.json in the run's folder, if there."),
    ] = None,
    episodes: EpisodesOption = 200,
    split: SplitOption = "test",
    seed: SeedOption = 0,
    task: Annotated[str | None, typer.Option(help="Default, as for the following: that of the run.")] = None,
    task_kwargs: Annotated[str | None, typer.Option(help="The task's parameters as JSON.")] = None,
    backend: BackendOption = None,
    block_length: Annotated[str | None, typer.Option(help="Block length, or 'full'.")] = None,
    alpha: Annotated[float | None, typer.Option(min=0.0, help="Exponent of the step price.")] = None,
    dtype: DtypeOption = None,
    backend_kwargs: Annotated[str | None, typer.Option(help="The dLLM's keywords as JSON.")] = None,
) -> None:
    """Write one self-contained HTML page about a training run or an agent."""
    from dllm_gym.looking.report import report as run_report

    given: dict[str, Any] = {
        "task": task,
        "task_kwargs": None if task_kwargs is None else _task_kwargs(task_kwargs),
        "backend": backend,
        "alpha": alpha,
        "backend_kwargs": _backend_kwargs(dtype, backend_kwargs or "{}") or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if block_length is not None:
        given["block_length"] = _block_length(block_length)
    with console.status("") as status:
        path = run_report(
            run,
            output,
            agents=agent or ["fast-dllm:threshold=0.9"],
            comparison=comparison,
            episodes=episodes,
            split=split,
            seed=seed,
            on_part=lambda part: status.update(escape(part)),
            **given,
        )
    _say("report", path)


@app.command()
def generate(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to answer.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Prompts: .txt, one per line; .jsonl, objects with prompt or messages; - for stdin.",
        ),
    ] = None,
    agent: AgentOption = "fast-dllm:threshold=0.9",
    backend: Annotated[str, typer.Option(help="Name, checkpoint directory or hub id.")] = "tiny-arithmetic",
    completion_length: Annotated[
        int | None, typer.Option(min=1, help="Positions to write in; default: the dLLM's own, or 256.")
    ] = None,
    block_length: BlockOption = "full",
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the tokens; 0 takes the best.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows decoded at once.")] = 64,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    backend_kwargs: BackendKwargsOption = "{}",
    stream: Annotated[bool, typer.Option("--stream", help="Show how one text is written.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Append every finished text here (.jsonl): interrupted work goes on."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Write a text for every prompt: texts to standard output, everything else to standard error."""
    from dllm_gym.generation import generate as run
    from dllm_gym.prompts import read_prompts

    if (file is None) == (not prompt):
        raise ValueError("give either prompts or --file")
    prompts = read_prompts(file) if file is not None else list(prompt or [])
    if not prompts:
        raise ValueError(f"{file} holds no prompts")
    if stream and len(prompts) != 1:
        raise ValueError(f"--stream shows one text being written, got {len(prompts)} prompts")
    progress = Progress(console=console)
    bar = progress.add_task(escape(agent), total=len(prompts))
    with Live(progress, console=console, transient=True) as live:
        generations = run(
            prompts,
            agent,
            backend,
            completion_length=completion_length,
            block_length=_block_length(block_length),
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            backend_kwargs=_backend_kwargs(dtype, backend_kwargs),
            on_step=(lambda _, text, step: live.update(Text(f"{step:4}  {text}"), refresh=True))
            if stream
            else None,
            on_text=lambda *_: progress.advance(bar),
            output=output,
        )
    for generation in generations if json_file != "-" else ():
        if len(generations) > 1:
            console.print(Text(_shown(generation.prompt), style="dim"))
        print(generation.text, flush=True)
    tokens = sum(len(generation.tokens) for generation in generations)
    steps = sum(generation.steps for generation in generations)
    console.print(
        f"{tokens} tokens in {steps} steps: {tokens / steps:.1f} tokens per forward", highlight=False
    )
    _write_json([generation.to_json() for generation in generations], json_file)


@app.command()
def pretrain(
    output: Annotated[Path, typer.Option(help="Directory for the checkpoint; an interrupted run goes on.")],
    task: TaskOption = "arithmetic",
    task_kwargs: Annotated[
        str, typer.Option(help="The task's parameters as JSON; a list of them is a mixture.")
    ] = "{}",
    layout: Annotated[str, typer.Option(help="Family of the checkpoint: llada or dream.")] = "llada",
    layers: Annotated[int, typer.Option(min=1)] = 6,
    width: Annotated[int, typer.Option(min=2)] = 64,
    heads: Annotated[int, typer.Option(min=1)] = 1,
    kv_heads: Annotated[
        int | None, typer.Option(min=1, help="Heads of keys and values; default: as many as heads.")
    ] = None,
    mlp_width: Annotated[int, typer.Option(min=1)] = 192,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Problems per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 4e-3,
    seed: Annotated[int, typer.Option()] = 0,
    init_from: Annotated[
        str | None, typer.Option(help="Checkpoint directory to take the first weights from.")
    ] = None,
    residual_context: Annotated[
        bool,
        typer.Option("--residual-context", help="Feed masks with what the frozen --init-from thinks."),
    ] = False,
    episodes: Annotated[int, typer.Option(min=1, help="Test problems for the model card.")] = 1000,
    save_every: Annotated[float, typer.Option(min=0.0, help="Seconds between two saved states.")] = 60.0,
) -> None:
    """Train a small dLLM from scratch on a task."""
    from dllm_gym.evaluation import evaluate as run_evaluation
    from dllm_gym.pretrain import PretrainConfig, Pretrainer

    config = PretrainConfig(
        task=task,
        task_kwargs=_task_kwargs(task_kwargs, mixture=True),
        layout=layout,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=mlp_width,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        init_from=init_from,
        residual_context=residual_context,
    )
    pretrainer = Pretrainer(config, output)
    average = None
    with Progress(console=console) as progress:
        bar = progress.add_task("pretraining", total=steps, completed=pretrainer.step)
        for step, loss in pretrainer.train(save_every):
            average = loss if average is None else 0.98 * average + 0.02 * loss
            progress.update(bar, completed=step, description=f"loss {average:.4f}")
    pretrainer.save_checkpoint()
    rows = [
        run_evaluation(
            "confidence:k=1",
            episodes,
            backend=str(output.resolve()),
            backend_kwargs={"residual_context": "warm"} if residual_context else {},
            task=task,
            task_kwargs=variant,
            block_length=block_length,
        ).to_json()
        | {"backend": output.name}  # not the path it was evaluated at
        for variant, trained in zip(config.variants, pretrainer.tasks, strict=True)
        for block_length in sorted({min(8, trained.completion_length), trained.completion_length})
    ]
    pretrainer.write_model_card(rows)
    console.print(_table(rows))


@app.command()
def bench(
    backend: Annotated[str, typer.Option(help="Name, checkpoint directory or hub id.")] = "tiny-arithmetic",
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Rows; may be given several times.  [default: 1, 8, 64, 256]"),
    ] = None,
    completion_length: Annotated[
        int | None, typer.Option(min=1, help="Positions to write in; default: the task's.")
    ] = None,
    block_length: BlockOption = "full",
    agent: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose completions per second are measured beside a plain loop's; may be given again. "
            "Default: fast-dllm:threshold=0.9 and eb-sampler:gamma=0.1."
        ),
    ] = None,
    task: TaskOption = "arithmetic",
    task_kwargs: TaskKwargsOption = "{}",
    dtype: DtypeOption = None,
    backend_kwargs: BackendKwargsOption = "{}",
    quick: Annotated[
        bool, typer.Option("--quick", help="Batch sizes 1 and 64, in less than a minute.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Measure a dLLM on this machine: its bare forward, environment steps, rules and a plain loop."""
    from dllm_gym.backends import load_backend
    from dllm_gym.bench import machine, measure_limit
    from dllm_gym.speeds import RULES, measure_speeds

    loaded = load_backend(backend, **_backend_kwargs(dtype, backend_kwargs))
    limits, speeds = [], []
    environment: dict[str, Any] = {
        "task": task,
        "task_kwargs": _task_kwargs(task_kwargs),
        "completion_length": completion_length,
        "block_length": _block_length(block_length),
    }
    with Progress(console=console, transient=True) as progress:
        sizes = batch_size or ([1, 64] if quick else [1, 8, 64, 256])
        bar = progress.add_task(escape(backend), total=len(sizes) * (2 + len(agent or RULES)))
        for size in sizes:
            rounds = 3 if quick else 5
            limits.append(measure_limit(loaded, batch_size=size, rounds=rounds, **environment))
            progress.advance(bar)
            for speed in measure_speeds(loaded, agent or RULES, batch_size=size, **environment):
                speeds.append(speed)
                progress.advance(bar)
    table = Table(box=None)
    for name in ("rows", "bare forward, rows/s", "environment, steps/s", "efficiency", "of it in the model"):
        table.add_column(name, justify="right")
    for limit in limits:
        per_second = (f"{limit.forward_rows_per_second:.0f}", f"{limit.env_steps_per_second:.0f}")
        table.add_row(str(limit.batch_size), *per_second, f"{limit.efficiency:.2f}", f"{limit.model:.1%}")
    console.print(table)
    console.print(_speed_table(speeds))
    efficiencies = {f"efficiency_batch_{limit.batch_size}": round(limit.efficiency, 3) for limit in limits}
    measured = {name: [one.to_json() for one in of] for name, of in (("limits", limits), ("speeds", speeds))}
    _write_json({"backend": backend, **efficiencies, "machine": machine(), **measured}, json_file)


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="Directory of a policy, training run or pretrained dLLM.")],
    repo: Annotated[str, typer.Argument(help="Repository to write to, owner/name; made if there is none.")],
    license: Annotated[
        str | None, typer.Option(help="For the card of a policy that has none, such as apache-2.0.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a policy or a small dLLM to a hub."""
    from dllm_gym.sharing import push as run

    print(run(path, repo, license=license, private=private))


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="Repository to read, owner/name.")],
    directory: Annotated[Path, typer.Argument(help="Where to put it; must not exist.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default: the newest.")] = None,
) -> None:
    """Download a policy or a small dLLM from a hub."""
    from dllm_gym.sharing import pull as run

    print(run(repo, directory, revision=revision))


def _shown(prompt: Prompt) -> str:
    """A prompt, or what was last said in a chat."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _json_object(option: str, text: str, example: str, or_list: bool = False) -> Any:
    from dllm_gym.files import parse_json

    try:
        value = parse_json(text, option)
    except ValueError:
        value = None
    objects = value if or_list and isinstance(value, list) else [value]
    if not objects or not all(isinstance(one, dict) for one in objects):
        kind = "JSON object, or a list of them," if or_list else "JSON object"
        raise ValueError(f"{option} must be a {kind} such as '{example}', got {text!r}")
    return value


def _task_kwargs(text: str, mixture: bool = False) -> Any:
    return _json_object("--task-kwargs", text, '{"size": 6}', or_list=mixture)


def _environment(
    task: str,
    task_kwargs: str,
    backend: str | None,
    block_length: str,
    alpha: float,
    dtype: str | None,
    backend_kwargs: str,
) -> dict[str, Any]:
    return {
        "task": task,
        "task_kwargs": _task_kwargs(task_kwargs),
        "backend": backend,
        "backend_kwargs": _backend_kwargs(dtype, backend_kwargs),
        "block_length": _block_length(block_length),
        "alpha": alpha,
    }


def _block_length(text: str) -> int | None:
    if text != "full" and not text.isdigit():
        raise ValueError(f"block length must be a whole number or 'full', got {text!r}")
    return None if text == "full" else int(text)


def _backend_kwargs(dtype: str | None, text: str) -> dict[str, Any]:
    given = _json_object("--backend-kwargs", text, '{"cache": "dual"}')
    return given if dtype is None else {**given, "dtype": dtype}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    for name in ("agent", "block", "accuracy", "95 % interval", "steps", "reward"):
        table.add_column(name, justify="left" if name == "agent" else "right")
    for row in rows:
        low, high = row["accuracy_ci95"]
        table.add_row(
            escape(row["label"]),
            str(row["block_length"]),
            f"{row['accuracy']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row['nfe_mean']:.1f}",
            f"{row['reward_mean']:.3f}",
            style="bold" if row.get("learned") else None,
        )
    return table


def _speed_table(speeds: Sequence[Speed]) -> Table:
    table = Table(box=None)
    for name in ("rows", "decoded by", "completions/s", "times the loop", "steps", "accuracy"):
        table.add_column(name, justify="left" if name == "decoded by" else "right")
    for speed in speeds:
        loop = next(one for one in speeds if one.batch_size == speed.batch_size)  # comes first
        table.add_row(
            str(speed.batch_size),
            escape(speed.label),
            f"{speed.completions_per_second:.3g}",
            f"{speed.completions_per_second / loop.completions_per_second:.1f}",
            f"{speed.steps:.1f}",
            f"{speed.accuracy:.3f}",
        )
    return table


def _order_table(profiles: Sequence[Profile]) -> Table:
    """A column per agent: the names of the measures would be too long for headings."""
    table = Table(box=None)
    table.add_column("")
    for profile in profiles:
        table.add_column(escape(profile.label), justify="right", overflow="fold")
    measures: dict[str, Callable[[Profile], str]] = {
        "accuracy": lambda p: f"{p.accuracy:.3f}",
        "steps": lambda p: f"{p.steps_mean:.1f}",
        "positions per step": lambda p: f"{p.reveals_per_step:.1f}",
        "local AR-ness@1": lambda p: f"{p.local_ar_ness[0]:.2f}",
        "global AR-ness@1": lambda p: f"{p.global_ar_ness[0]:.2f}",
        "neighbours in the same step": lambda p: f"{p.same_step:.2f}",
        "reveals beside earlier ones": lambda p: f"{p.adjacent_share:.2f}",
        "mean confidence": lambda p: f"{p.confidence_mean:.2f}",
        "tokens it would write again": lambda p: f"{p.kept:.3f}",
    }
    for name, show in measures.items():
        values = [show(profile) for profile in profiles]
        if set(values) != {"nan"}:
            table.add_row(name, *("-" if value == "nan" else value for value in values))
    return table


def _say(what: str, text: object) -> None:
    """One line to standard error, however long; nothing in the text is markup."""
    style = {"error": "bold red", "warning": "bold yellow"}.get(what)
    console.print(Text.assemble((f"{what}:", style or ""), " ", " ".join(str(text).split())), soft_wrap=True)


def _write_json(value: Any, target: str | None) -> None:
    if target == "-":
        print(json.dumps(value, ensure_ascii=False))
    elif target is not None:
        from dllm_gym.files import write_json

        write_json(target, value)


def main() -> None:
    """Entry point of the console script: wrong input ends in one line, not in a traceback."""
    from dllm_gym.files import check_text
    from dllm_gym.plugins import plugins

    for plugin in plugins():
        plugin.register_commands(app)
    try:
        for at, argument in enumerate(sys.argv[1:], start=1):
            check_text(argument, f"argument {at}")
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _say("warning", message)
            app()
    except (ValueError, OSError, ImportError) as error:
        _say("error", error)
        sys.exit(1)
