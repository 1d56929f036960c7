"""dLLMs themselves: ``pretrain``, ``quality-head`` and ``bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dllm_gym.cli.options import (
    AgentsOption,
    BlockOption,
    CompileOption,
    Dllm,
    ImportOption,
    JsonOption,
    TaskKwargsOption,
    complete_dllm,
    complete_task,
    how_to_compile,
    read_block_length,
    read_task_kwargs,
    run_files,
)
from dllm_gym.cli.program import command
from dllm_gym.cli.screen import progress, results_table, show, write_json

if TYPE_CHECKING:
    from dllm_gym.resumable import Training
    from dllm_gym.speeds import Speed

_SaveEvery = Annotated[float, typer.Option(min=0.0, help="Seconds between two saved states.")]
_Task = Annotated[str, typer.Option(help="Registered task.", autocompletion=complete_task)]


@command("pretrain")
def pretrain(
    output: Annotated[Path, typer.Option(help="Directory for the checkpoint; an interrupted run goes on.")],
    task: _Task = "arithmetic",
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
        str | None,
        typer.Option(help="Checkpoint directory, or embedded dLLM, to take the first weights from."),
    ] = None,
    residual_context: Annotated[
        str | None,
        typer.Option(
            help="Feed masks with what is thought of them: rcd, by the frozen --init-from; soft-mask or "
            "soft-mask-uncertain, by the dLLM itself, in shares that are learned."
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Test problems for the model card.")] = 1000,
    imports: ImportOption = None,
    save_every: _SaveEvery = 60.0,
) -> None:
    """Train a small dLLM from scratch on a task."""
    from dllm_gym.evaluation import evaluate as run_evaluation
    from dllm_gym.pretrain import PretrainConfig, Pretrainer

    run_files(imports)
    config = PretrainConfig(
        task=task,
        task_kwargs=read_task_kwargs(task_kwargs, mixture=True),
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
    _train(pretrainer, "pretraining", save_every)
    pretrainer.save_checkpoint()
    rows = [
        run_evaluation(
            "confidence:k=1",
            episodes,
            backend=str(output.resolve()),
            backend_kwargs={"residual_context": True} if residual_context else {},
            task=task,
            task_kwargs=variant,
            block_length=block_length,
        ).to_json()
        | {"backend": output.name}  # not the path it was evaluated at
        for variant, trained in zip(config.variants, pretrainer.tasks, strict=True)
        for block_length in sorted({min(8, trained.completion_length), trained.completion_length})
    ]
    pretrainer.write_model_card(rows)
    show(None, results_table(rows))


@command("quality-head")
def quality_head(
    output: Annotated[
        Path,
        typer.Option(
            help="Directory for the checkpoint with its head, or its own; an interrupted run goes on."
        ),
    ],
    backend: Annotated[
        str,
        typer.Option(
            help="Embedded dLLM, or directory of one made by pretrain.", autocompletion=complete_dllm
        ),
    ],
    reveal: Annotated[int, typer.Option(min=1, help="Masks of a canvas that the dLLM writes.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Problems per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 3e-3,
    seed: Annotated[int, typer.Option()] = 0,
    episodes: Annotated[int, typer.Option(min=1, help="Test problems for the model card.")] = 1000,
    imports: ImportOption = None,
    save_every: _SaveEvery = 60.0,
) -> None:
    """Train a head that tells a dLLM's right tokens from wrong ones (PRISM); the dLLM stays as it is."""
    from dllm_gym.quality import QualityConfig, QualityTrainer

    run_files(imports)
    trainer = QualityTrainer(
        QualityConfig(
            dllm=backend,
            reveal=reveal,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        ),
        output,
    )
    _train(trainer, "quality head", save_every)
    areas = trainer.measure(episodes)
    trainer.save(areas)
    table = Table(*areas, box=None)
    table.add_row(*(f"{area:.3f}" for area in areas.values()))
    show(None, table)


def _train(training: Training, what: str, save_every: float) -> None:
    """Trains to the end, and shows how the loss falls."""
    average = None
    with progress(what, training.config.steps - training.step) as bar:
        for _, loss in training.train(save_every):
            average = loss if average is None else 0.98 * average + 0.02 * loss
            bar.describe(f"loss {average:.4f}")
            bar.advance()


@command("bench")
def bench(
    dllm: Dllm,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Rows; may be given several times.  [default: 1, 8, 64, 256]"),
    ] = None,
    completion_length: Annotated[
        int | None, typer.Option(min=1, help="Positions to write in; default: the task's.")
    ] = None,
    block_length: BlockOption = None,
    agent: AgentsOption = None,
    task: _Task = "arithmetic",
    task_kwargs: TaskKwargsOption = None,
    compile: CompileOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Batch sizes 1 and 64, in less than a minute.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Measure a dLLM on this machine: its bare forward, environment steps, rules and a plain loop.

    The bare forward is the plain model's; the fastest is the compiled one where there is one.

    The agents are those whose completions per second are measured beside a plain loop's; without --agent
    fast-dllm:threshold=0.9 and eb-sampler:gamma=0.1.
    """
    from dllm_gym.backends import load_backend
    from dllm_gym.bench import machine, measure_limit
    from dllm_gym.evaluation.home import dllm_of
    from dllm_gym.speeds import RULES, measure_speeds

    given, parameters = dllm.arguments(), read_task_kwargs(task_kwargs or "{}")
    backend = dllm_of({"task": task, "task_kwargs": parameters, **given})
    how = how_to_compile(backend, compile)
    compiled = {"compile": how} if how else {}
    loaded = load_backend(backend, **{**compiled, **given.get("backend_kwargs", {})})
    limits, speeds = [], []
    environment: dict[str, Any] = {
        "task": task,
        "task_kwargs": parameters,
        "completion_length": completion_length,
        "block_length": read_block_length(block_length or "full"),
    }
    sizes = batch_size or ([1, 64] if quick else [1, 8, 64, 256])
    with progress(backend, len(sizes) * (2 + len(agent or RULES))) as bar:
        for size in sizes:
            rounds = 3 if quick else 5
            limits.append(measure_limit(loaded, batch_size=size, rounds=rounds, **environment))
            bar.advance()
            for speed in measure_speeds(loaded, agent or RULES, batch_size=size, **environment):
                speeds.append(speed)
                bar.advance()
    table = Table(box=None)
    for name in (
        *("rows", "environment, steps/s", "bare forward, rows/s", "efficiency"),
        *("fastest forward, rows/s", "efficiency", "of it in the model"),
    ):
        table.add_column(name, justify="right")
    for limit in limits:
        row = [str(limit.batch_size), f"{limit.env_steps_per_second:.0f}"]
        row += [f"{limit.forward_rows_per_second:.0f}", f"{limit.efficiency:.2f}"]
        row += [f"{limit.fastest_rows_per_second:.0f}", f"{limit.efficiency_of_fastest:.2f}"]
        table.add_row(*row, f"{limit.model:.1%}")
    show(json_file, table, _speed_table(speeds))
    efficiencies = {f"efficiency_batch_{limit.batch_size}": round(limit.efficiency, 3) for limit in limits}
    measured = {name: [one.to_json() for one in of] for name, of in (("limits", limits), ("speeds", speeds))}
    write_json({"backend": backend, **efficiencies, "machine": machine(), **measured}, json_file)


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
