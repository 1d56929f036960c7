"""Tree search over unmasking orders: what an hour of thinking would find, with every forward counted.

Run: ``python examples/mcts.py``

Every step grows a tree from the canvas as it is: nodes are canvases, edges reveal the one, two or four surest
positions. A leaf's value is how sure the dLLM is of what it wrote, less a price per step; the reward is not
looked at, for it knows the right answer. Paths are in the environment's own engine, which counts their
forwards in ``nfe`` and does not compute the one that is taken again.
"""

import argparse
import math
from dataclasses import dataclass, field

import numpy as np

import dllm_gym
from dllm_gym.envs.engine import Engine

SIZES = (1, 2, 4)  # positions that an edge reveals


@dataclass
class Node:
    """A canvas: the actions that led to it from the root, what is seen there, and what searching found."""

    path: tuple[np.ndarray, ...]
    observation: dict[str, np.ndarray]
    sureness: float  # sum of log confidence of what was revealed on the way
    visits: int = 0
    total: float = 0.0
    children: list["Node"] = field(default_factory=list)

    @property
    def value(self) -> float:
        return self.total / max(self.visits, 1)


class TreeSearch:
    """An agent that searches for every row before it acts.

    Args:
        simulations: Leaves to look at per step.
        price: What a step costs, in nats of sureness.
        curiosity: Of the upper confidence bound.
    """

    name = "mcts"

    def __init__(self, simulations: int = 8, price: float = 0.05, curiosity: float = 0.5) -> None:
        self.parameters = {"simulations": simulations, "price": price}
        self.label = f"mcts(simulations={simulations}, price={price})"
        self._simulations, self._price, self._curiosity = simulations, price, curiosity

    def attach(self, engine: Engine) -> None:
        """``evaluate`` calls it before it decodes."""
        engine.check_look_ahead()
        self._engine = engine

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        action = np.zeros_like(observation["action_mask"])
        for row in np.flatnonzero(~self._engine.ended & observation["action_mask"].any(axis=1)):
            root = Node((), {key: value[row] for key, value in observation.items()}, 0.0)
            for _ in range(self._simulations):
                self._simulate(row, root)
            action[row] = max(root.children, key=lambda child: (child.visits, child.value)).path[0]
        return action

    def _simulate(self, row: int, root: Node) -> None:
        visited = [root]
        while visited[-1].children:
            visited.append(self._most_promising(visited[-1]))
        leaf = visited[-1]
        if (leaf is root or leaf.visits) and leaf.observation["mask"].any():
            leaf.children = [self._child(row, leaf, size) for size in self._sizes(leaf)]
            visited.append(leaf := leaf.children[-1])
        masked = leaf.observation["mask"] == 1
        rest = np.log(leaf.observation["confidence"][masked]).sum()
        worth = leaf.sureness + rest - self._price * (len(leaf.path) + masked.sum())
        for node in visited:
            node.visits += 1
            node.total += math.exp(worth)

    def _most_promising(self, node: Node) -> Node:
        bound = math.log(node.visits + 1)
        return max(node.children, key=lambda c: c.value + self._curiosity * math.sqrt(bound / (c.visits + 1)))

    def _sizes(self, node: Node) -> list[int]:
        left = int(node.observation["action_mask"].sum())
        return [size for size in SIZES if size <= left] or [left]

    def _child(self, row: int, node: Node, size: int) -> Node:
        confidence = np.where(node.observation["action_mask"] == 1, node.observation["confidence"], -1.0)
        surest = np.argsort(-confidence, kind="stable")[:size]
        action = np.zeros_like(node.observation["action_mask"])
        action[surest] = 1
        path = (*node.path, action)
        seen = self._engine.look_ahead(np.array([row]), *(one[None] == 1 for one in path))
        own = {key: value[row] for key, value in seen.items()}
        return Node(path, own, node.sureness + float(np.log(confidence[surest]).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--simulations", type=int, default=8)
    arguments = parser.parse_args()
    for agent in ("confidence:k=1", "confidence:k=4", "lopa:k=3", TreeSearch(arguments.simulations)):
        result = dllm_gym.evaluate(agent, arguments.episodes, task="sudoku")
        print(f"{result.label:40} {result.accuracy:.3f} right, {result.nfe_mean:.1f} forwards each")


if __name__ == "__main__":
    main()
