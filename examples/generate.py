"""What a learned policy buys: the same prompts, written by two heuristics and by a policy trained here.

Run: ``python examples/generate.py``
"""

import argparse

import dllm_gym

AGENTS = ("confidence:k=1", "fast-dllm:threshold=0.9", "policy:arithmetic-full:deterministic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100, help="from the task's test problems")
    arguments = parser.parse_args()
    task = dllm_gym.load_task("arithmetic", split="test")
    problems = [task.problem(index) for index in range(arguments.prompts)]
    prompts = [problem.prompt for problem in problems]
    written = {agent: dllm_gym.generate(prompts, agent, "tiny-arithmetic") for agent in AGENTS}
    for number, prompt in enumerate(prompts[:3]):
        print(prompt)
        for agent, generations in written.items():
            one = generations[number]
            print(f"  {agent:36} {one.steps:2} steps, {one.tokens_per_step:4.1f} tokens per step: {one.text}")
    print(f"all {len(prompts)} prompts")
    for agent, generations in written.items():
        right = sum(task.score(one.text, p) == 1 for one, p in zip(generations, problems, strict=True))
        speed = sum(len(one.tokens) for one in generations) / sum(one.steps for one in generations)
        print(f"  {agent:36} {right} right, {speed:.1f} tokens per step")


if __name__ == "__main__":
    main()
